"""Random keys that may be absent: no key means no randomness, so dropout is off."""

import functools
from typing import overload

import jax
from jax.core import Tracer
from jaxtyping import PRNGKeyArray

USUAL = 8  # keys that a part splits its own into, at most


@overload
def split(key: PRNGKeyArray, count: int) -> tuple[PRNGKeyArray, ...]: ...


@overload
def split(key: None, count: int) -> tuple[None, ...]: ...


def split(key: PRNGKeyArray | None, count: int) -> tuple[PRNGKeyArray | None, ...]:
    """`count` independent keys, or as many `None` when there is no key."""
    if key is None:
        return (None,) * count
    if isinstance(key, Tracer) or count > USUAL or not _first_are_same(key):
        return _parts(key, count)
    return _parts(key, USUAL)[:count]  # one program for every count: each takes 25 ms to begin


def _first_are_same(key: PRNGKeyArray) -> bool:
    """Whether the first of many keys are those that one would get if one asked for fewer."""
    counted = getattr(jax.config, "jax_threefry_partitionable", True)  # each from its number alone
    return counted and str(jax.random.key_impl(key)) == "threefry2x32"


@functools.partial(jax.jit, static_argnames="count", inline=True)
def _parts(key: PRNGKeyArray, count: int) -> tuple[PRNGKeyArray, ...]:
    """Drawn and taken apart in one program: of small ones a new process compiles many."""
    return tuple(jax.random.split(key, count))


def fold(key: PRNGKeyArray | None, index: int | jax.Array) -> PRNGKeyArray | None:
    """The key of the `index`-th layer, or `None` when there is no key."""
    return None if key is None else jax.random.fold_in(key, index)
