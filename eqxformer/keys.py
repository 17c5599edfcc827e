"""Random keys that may be absent: no key means no randomness, so dropout is off."""

import functools
from typing import overload

import jax
from jaxtyping import PRNGKeyArray


@overload
def split(key: PRNGKeyArray, count: int) -> tuple[PRNGKeyArray, ...]: ...


@overload
def split(key: None, count: int) -> tuple[None, ...]: ...


def split(key: PRNGKeyArray | None, count: int) -> tuple[PRNGKeyArray | None, ...]:
    """`count` independent keys, or as many `None` when there is no key."""
    return (None,) * count if key is None else _parts(key, count)


@functools.partial(jax.jit, static_argnames="count", inline=True)
def _parts(key: PRNGKeyArray, count: int) -> tuple[PRNGKeyArray, ...]:
    """Drawn and taken apart in one program: of small ones a new process compiles many."""
    return tuple(jax.random.split(key, count))


def fold(key: PRNGKeyArray | None, index: int | jax.Array) -> PRNGKeyArray | None:
    """The key of the `index`-th layer, or `None` when there is no key."""
    return None if key is None else jax.random.fold_in(key, index)
