"""The linear map under every projection: the one seam for adapters, quantisation and sharding."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

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

    `y[n] = x[n] @ weight[g(n)] + bias[g(n)]` as one grouped matrix product, with no loop over
    groups. A mixture of experts puts it in the place of the `Linear`s of its stacked experts.
    """

    weight: Float[Array, "experts in_dim out_dim"]
    bias: Float[Array, "experts out_dim"] | None
    sizes: Array

    def __call__(self, x: Float[Array, "rows in_dim"]) -> Float[Array, "rows out_dim"]:
        # Under vmap, ragged_dot wants all its operands batched; this select batches the weight
        # with the sizes, and outside vmap the compiler removes it.
        weight = jax.lax.select_n(self.sizes.sum() >= 0, self.weight, self.weight)
        y = jax.lax.ragged_dot(x, weight, self.sizes)
        if self.bias is None:
            return y
        rows = jnp.repeat(self.bias, self.sizes, axis=0, total_repeat_length=x.shape[0])
        return y + rows


def along_last(
    vector: Float[Array, " n"], like: Float[Array, "*batch n"]
) -> Float[Array, "*batch n"]:
    """`vector` repeated over the leading axes of `like`; explicit, since rank promotion may raise."""
    return jax.lax.broadcast_in_dim(vector, like.shape, (like.ndim - 1,))
