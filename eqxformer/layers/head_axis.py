"""The axis of heads: split off the last one, merged back into it, or summed away."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqxformer.config import Config


class SumHeads(Config):
    """The heads' values are summed into the residual, with no output projection.

    It takes the place of the output projection: `Attention.Config(out=SumHeads(), ...)`.

    Example:
        >>> import eqxformer as ef, jax
        >>> ef.SumHeads().build(4, 2, key=jax.random.key(0))
        HeadSum(dim=2)
    """

    def build(self, in_dim: int, out_dim: int, *, key: PRNGKeyArray) -> "HeadSum":
        """The sum of `in_dim / out_dim` slices; raises `ValueError` where that is not whole."""
        if in_dim % out_dim:
            raise ValueError(
                "Without an output projection, `heads * value_dim` must be a multiple of the "
                f"model's width; got {in_dim} and {out_dim}. Set `value_dim` to that width, or to "
                "its share per head to lay the heads side by side."
            )
        return HeadSum(out_dim)


class HeadSum(eqx.Module):
    """`y = sum over h of x[h * dim : (h + 1) * dim]`; with one such slice, `x` itself.

    Arguments:
        dim: width of a slice.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> ef.HeadSum(2)(jnp.array([1.0, 2.0, 10.0, 20.0])).tolist()
        [11.0, 22.0]
    """

    dim: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*batch wide"]) -> Float[Array, "*batch dim"]:
        return x.reshape(*x.shape[:-1], x.shape[-1] // self.dim, self.dim).sum(-2)


def split_heads(
    x: Float[Array, "*batch seq wide"], size: int
) -> Float[Array, "*batch heads seq size"]:
    """Heads of `size` numbers each, which lie side by side in the last axis."""
    return jnp.swapaxes(x.reshape(*x.shape[:-1], x.shape[-1] // size, size), -3, -2)


def merge_heads(x: Float[Array, "*batch heads seq size"]) -> Float[Array, "*batch seq wide"]:
    """The heads side by side, the inverse of `split_heads`."""
    x = jnp.swapaxes(x, -3, -2)
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
