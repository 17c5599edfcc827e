"""Dropout of single numbers and of whole branches; both are the identity without a key."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def dropout(x: Float[Array, "*any"], rate: float, key: PRNGKeyArray | None) -> Float[Array, "*any"]:
    """Each number is zero with probability `rate`, else divided by `1 - rate` (Srivastava 2014).

    Arguments:
        rate: at least 0 and below 1.
        key: None for the identity, as outside of training.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> x = ef.dropout(jnp.ones(64), 0.5, jax.random.key(0))
        >>> sorted(set(x.tolist())), float(ef.dropout(jnp.ones(64), 0.5, None).min())
        ([0.0, 2.0], 1.0)
    """
    if key is None or rate == 0.0:
        return x
    return _drop(x, rate, key, x.shape)


def drop_path(
    x: Float[Array, "*batch seq dim"], rate: float, key: PRNGKeyArray | None
) -> Float[Array, "*batch seq dim"]:
    """Stochastic depth: each sequence's whole branch is dropped with probability `rate`.

    Huang et al. 2016. The kept ones are divided by `1 - rate`, so that the mean stays.

    Arguments as for `dropout`.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> x = ef.drop_path(jnp.ones((64, 2, 1)), 0.5, jax.random.key(0))  # 64 sequences
        >>> sorted({tuple(row) for row in x[..., 0].tolist()})
        [(0.0, 0.0), (2.0, 2.0)]
    """
    if key is None or rate == 0.0:
        return x
    return _drop(x, rate, key, (*x.shape[:-2], 1, 1))


def check_rate(name: str, rate: float) -> None:
    """Raises `ValueError` for a rate outside `0 <= rate < 1`."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"`{name}` must be at least 0 and below 1; got {rate}.")


def _drop(x: Array, rate: float, key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
