"""The linear map under every projection: the one seam for adapters, quantisation and sharding."""

import abc
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from eqxformer.config import Config, takes_options
from eqxformer.layers.gather import rows_of
from eqxformer.layers.initializers import Initializer, LeCun
from eqxformer.layers.product import product


class Groups(eqx.Module):
    """Rows sorted by their group, and where each lies among blocks that are of one group each.

    Blocks are as long as an average group and filled up with zeros, so that a linear map per group
    is one batched product; at most half of it is filling.

    Arguments:
        group: the group of each row, in ascending order.
        count: how many groups there are; some may have no rows.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> groups = ef.Groups(jnp.array([0, 0, 0, 1]), count=2)
        >>> groups.length, groups.row.tolist(), groups.block.tolist()
        (2, [0, 1, 2, 4], [0, 0, 1])
    """

    group: Int[Array, " rows"]
    row: Int[Array, " rows"]
    block: Int[Array, " blocks"]
    length: int = eqx.field(static=True)

    def __init__(self, group: Int[Array, " rows"], count: int):
        rows = group.shape[0]
        self.length = length = max(rows // max(count, 1), 1)
        blocks = (rows + min(count, rows) * (length - 1)) // length  # the most that are needed
        sizes = jnp.zeros(count, group.dtype).at[group].add(1)
        needed = -(-sizes // length)
        start = length * (jnp.cumsum(needed) - needed) - (jnp.cumsum(sizes) - sizes)
        self.group = group
        self.row = start[group] + jnp.arange(rows, dtype=group.dtype)
        every = jnp.arange(count, dtype=group.dtype)
        self.block = jnp.repeat(every, needed, total_repeat_length=blocks)


class AbstractLinear(eqx.Module):
    """A linear map of the last axis, over any leading axes: what every projection is.

    Configs build a `Linear`. Adapters and quantised weights take its place in a finished model.

    Example:
        >>> import eqxformer as ef, jax
        >>> up = ef.quantise(ef.MLP(8, hidden=16, key=jax.random.key(0)), to="up").up
        >>> isinstance(up, ef.AbstractLinear), type(up).__name__, type(up.plain()).__name__
        (True, 'QuantisedLinear', 'Linear')
    """

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "*batch in_dim"]) -> Float[Array, "*batch out_dim"]:
        """The map of every row."""

    @abc.abstractmethod
    def plain(self) -> "Linear":
        """The `Linear` that computes the same, to rounding."""

    @abc.abstractmethod
    def bare(self) -> "AbstractLinear":
        """The same map without its bias."""

    @abc.abstractmethod
    def grouped(self, groups: Groups) -> Callable[[Array], Array]:
        """The maps of stacked experts as one, of rows sorted by their expert."""


@functools.cache
def _structure(bias: bool) -> Any:
    """That of a `Linear`."""
    make = functools.partial(Linear, 1, 1, bias=bias)
    return jax.tree.structure(eqx.filter_eval_shape(lambda key: make(key=key), jax.random.key(0)))


class Linear(AbstractLinear):
    """Linear map of the last axis: `y = x @ weight + bias`, over any leading axes.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> linear = ef.Linear(8, 16, key=jax.random.key(0))
        >>> linear(jnp.ones((2, 3, 8))).shape
        (2, 3, 16)
    """

    class Config(Config):
        """Whether there is a bias (it starts at zero), and how the weight starts."""

        bias: bool = True
        init: Initializer = LeCun()

        def build(self, in_dim: int, out_dim: int, *, key: PRNGKeyArray) -> "Linear":
            """A `Linear` from `in_dim` to `out_dim`."""
            return Linear(in_dim, out_dim, self, key=key)

    weight: Float[Array, "in_dim out_dim"]
    bias: Float[Array, " out_dim"] | None

    @takes_options
    def __init__(self, in_dim: int, out_dim: int, config: Config, *, key: PRNGKeyArray):
        if in_dim < 1 or out_dim < 1:
            raise ValueError(
                f"`in_dim` and `out_dim` must be positive; got in_dim={in_dim}, out_dim={out_dim}."
            )
        self.weight = config.init(key, (in_dim, out_dim))
        self.bias = jnp.zeros(out_dim, jnp.float32) if config.bias else None

    @staticmethod
    def of(
        weight: Float[Array, "in_dim out_dim"], bias: Float[Array, " out_dim"] | None
    ) -> "Linear":
        """The map with these arrays."""
        arrays = [weight] if bias is None else [weight, bias]
        return jax.tree.unflatten(_structure(bias is not None), arrays)

    def __call__(self, x: Float[Array, "*batch in_dim"]) -> Float[Array, "*batch out_dim"]:
        y = product(x, self.weight)
        return y if self.bias is None else y + along_last(self.bias, y)

    def plain(self) -> "Linear":
        return self

    def bare(self) -> "Linear":
        return Linear.of(self.weight, None)

    def grouped(self, groups: Groups) -> "GroupedLinear":
        return GroupedLinear(self.weight, self.bias, groups)


class GroupedLinear(eqx.Module):
    """A linear map per group of rows: `y[n] = x[n] @ weight[group[n]] + bias[group[n]]`.

    There is no loop over groups. A mixture of experts puts it in the place of the `Linear`s of its
    stacked experts. (`jax.lax.ragged_dot` would multiply every row by the weights of every group on
    a CPU, and fails under a `vmap` that does not batch all of its operands.)

    Arguments:
        weight, bias: those of each group; no bias if None.
        groups: which rows are whose.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> weight = jnp.array([[[1.0]], [[10.0]]])  # two groups, one number in and one out
        >>> linear = ef.GroupedLinear(weight, None, ef.Groups(jnp.array([0, 0, 1]), count=2))
        >>> linear(jnp.array([[1.0], [2.0], [3.0]])).ravel().tolist()
        [1.0, 2.0, 30.0]
    """

    weight: Float[Array, "experts in_dim out_dim"]
    bias: Float[Array, "experts out_dim"] | None
    groups: Groups

    def __call__(self, x: Float[Array, "rows in_dim"]) -> Float[Array, "rows out_dim"]:
        y = grouped_product(x, self.weight, self.groups)
        return y if self.bias is None else y + rows_of(self.bias, self.groups.group)


def grouped_product(
    x: Float[Array, "rows in_dim"], weight: Num[Array, "experts in_dim out_dim"], groups: Groups
) -> Float[Array, "rows out_dim"]:
    """`y[n] = x[n] @ weight[group[n]]`, with weights in the type of `x` or one that is cast to it.

    Weights are cast block by block, so that no other copy of all of them is made.
    """
    _, in_dim, out_dim = weight.shape
    blocks, places = groups.block.shape[0], groups.block.shape[0] * groups.length
    laid = jnp.zeros((places, in_dim), x.dtype).at[groups.row].set(x, unique_indices=True)
    y = laid.reshape(blocks, groups.length, in_dim) @ weight[groups.block].astype(x.dtype)
    return y.reshape(places, out_dim)[groups.row]


def along_last(
    vector: Float[Array, " n"], like: Float[Array, "*batch n"]
) -> Float[Array, "*batch n"]:
    """`vector` repeated over the leading axes of `like`, where rank promotion may be an error."""
    return jax.lax.broadcast_in_dim(vector, like.shape, (like.ndim - 1,))
