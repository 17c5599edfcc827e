"""The linear map under every projection: the one seam for adapters, quantisation and sharding."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from eqxformer.config import Config, takes_options
from eqxformer.layers.initializers import Initializer, LeCun


class Linear(eqx.Module):
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

    def __call__(self, x: Float[Array, "*batch in_dim"]) -> Float[Array, "*batch out_dim"]:
        y = x @ self.weight
        return y if self.bias is None else y + along_last(self.bias, y)


class GroupedLinear(eqx.Module):
    """A linear map per group of rows: rows `sizes[:g].sum()` onwards use `weight[g]`.

    `y[n] = x[n] @ weight[g(n)] + bias[g(n)]`, with no loop over groups. A mixture of experts puts
    it in the place of the `Linear`s of its stacked experts.

    The rows are laid out in blocks of equal length, each of a single group and filled up with
    zeros, so that all groups are one batched product. Blocks are as long as an average group, so
    at most half of the work is filling. (`jax.lax.ragged_dot` multiplies every row by the weights
    of every group on a CPU, and fails under `vmap` unless all its operands are batched.)
    """

    weight: Float[Array, "experts in_dim out_dim"]
    bias: Float[Array, "experts out_dim"] | None
    sizes: Int[Array, " experts"]

    def __call__(self, x: Float[Array, "rows in_dim"]) -> Float[Array, "rows out_dim"]:
        (rows, in_dim), (groups, _, out_dim) = x.shape, self.weight.shape
        length = max(rows // groups, 1)
        blocks = (rows + min(groups, rows) * (length - 1)) // length  # the most that are needed
        group, row, block = self._places(rows, length, blocks)
        laid = jnp.zeros((blocks * length, in_dim), x.dtype).at[row].set(x, unique_indices=True)
        y = laid.reshape(blocks, length, in_dim) @ self.weight[block]
        y = y.reshape(blocks * length, out_dim)[row]
        return y if self.bias is None else y + self.bias[group]

    def _places(
        self, rows: int, length: int, blocks: int
    ) -> tuple[Int[Array, " rows"], Int[Array, " rows"], Int[Array, " blocks"]]:
        """The group of each row, its place among the blocks, and the group of each block."""
        sizes, groups = self.sizes, self.sizes.shape[0]
        every = jnp.arange(groups, dtype=sizes.dtype)
        group = jnp.repeat(every, sizes, total_repeat_length=rows)
        needed = -(-sizes // length)
        ends = jnp.cumsum(needed)
        moved = length * (ends - needed) - (jnp.cumsum(sizes) - sizes)
        block = jnp.searchsorted(ends, jnp.arange(blocks, dtype=sizes.dtype), side="right")
        row = moved[group] + jnp.arange(rows, dtype=sizes.dtype)
        return group, row, jnp.minimum(block, groups - 1)


def along_last(
    vector: Float[Array, " n"], like: Float[Array, "*batch n"]
) -> Float[Array, "*batch n"]:
    """`vector` repeated over the leading axes of `like`; explicit, since rank promotion may raise."""
    return jax.lax.broadcast_in_dim(vector, like.shape, (like.ndim - 1,))
