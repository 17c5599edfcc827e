"""When a row is finished: small values, joined with `|`, usable under `jit`.

>>> import eqxformer as ef
>>> stop = ef.StopIds((2, 5)) | ef.StopWhen(lambda seen: seen.new >= 7)
"""

import abc
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from eqxformer.generation._token_ids import TokenIds
from eqxformer.generation.following import Follower
from eqxformer.generation.processors import Seen


class Stop(Follower):
    """A condition after which a row is finished; `first | second` is met when either is.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> class NotBelow(ef.Stop):
        ...     id: int
        ...     def reached(self, seen):
        ...         return seen.newest() >= self.id
        >>> seen = ef.Seen.start(jnp.array([[1, 2], [1, 7]]), None, new=0)
        >>> (NotBelow(5) | ef.StopIds(3)).reached(seen)
        Array([False,  True], dtype=bool)
    """

    @abc.abstractmethod
    def reached(self, seen: Seen) -> Bool[Array, " rows"]:
        """Whether each row is finished by its newest token, which `seen` holds already."""

    def __or__(self, other: "Stop") -> "AnyStop":
        if not isinstance(other, Stop):
            return NotImplemented
        return AnyStop((*_parts(self), *_parts(other)))


class AnyStop(Stop):
    """Finished when any of the parts says so; made by `first | second`."""

    parts: tuple[Stop, ...]

    def begin(self, rows: int) -> "AnyStop":
        return AnyStop(tuple(part.begin(rows) for part in self.parts))

    def after(self, tokens: Int[Array, " rows"]) -> "AnyStop":
        return AnyStop(tuple(part.after(tokens) for part in self.parts))

    def reached(self, seen: Seen) -> Bool[Array, " rows"]:
        found = jnp.zeros(seen.length.shape, bool)
        for part in self.parts:
            found = found | part.reached(seen)
        return found


class StopIds(Stop):
    """Finished by any of these ids; other ids compile nothing anew.

    Raises `ValueError` for a negative id, and in `generate` for one outside the vocabulary.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> seen = ef.Seen.start(jnp.array([[1, 7], [7, 1]]), None, new=0)
        >>> ef.StopIds((7, 8)).reached(seen)
        Array([ True, False], dtype=bool)
    """

    ids: TokenIds

    def __init__(self, ids: int | tuple[int, ...]):
        self.ids = TokenIds((ids,) if isinstance(ids, int | np.integer) else tuple(ids), "stop")

    def reached(self, seen: Seen) -> Bool[Array, " rows"]:
        return (seen.newest()[:, None] == self.ids.array[None]).any(-1)


class StopWhen(Stop):
    """Finished when a function of your own, `function(seen)`, says so: a boolean per row.

    The function is traced, so it must be made of JAX operations. Let it be defined once: another
    function, also one of the same text, compiles anew.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> seen = ef.Seen.start(jnp.array([[1, 7]]), None, new=0)
        >>> ef.StopWhen(lambda seen: seen.length >= 2).reached(seen)
        Array([ True], dtype=bool)
    """

    function: Callable[[Any], Array]

    def reached(self, seen: Seen) -> Bool[Array, " rows"]:
        found = self.function(seen)
        shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
        if shape != seen.length.shape or dtype != jnp.bool_:
            raise ValueError(
                f"The function of `StopWhen` must give a boolean per row, {seen.length.shape}; "
                f"got {type(found).__name__} with shape {shape} and dtype {dtype}."
            )
        return found


def as_stop(stop: "int | tuple[int, ...] | Stop | None") -> Stop:
    """A condition as it is; ids as `StopIds`, and None as no ids."""
    if isinstance(stop, Stop):
        return stop
    return StopIds(() if stop is None else stop)


def _parts(stop: Stop) -> tuple[Stop, ...]:
    return stop.parts if isinstance(stop, AnyStop) else (stop,)
