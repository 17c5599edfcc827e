"""Random keys that may be absent: no key means no randomness, so dropout is off."""

import jax
from jaxtyping import PRNGKeyArray


def split(key: PRNGKeyArray | None, count: int) -> tuple[PRNGKeyArray | None, ...]:
    """`count` independent keys, or as many `None` when there is no key."""
    if key is None:
        return (None,) * count
    return tuple(jax.random.split(key, count))


def fold(key: PRNGKeyArray | None, index: int | jax.Array) -> PRNGKeyArray | None:
    """The key of the `index`-th layer, or `None` when there is no key."""
    return None if key is None else jax.random.fold_in(key, index)
