"""One trace for calls that are alike: a deep model is traced, differentiated and lowered once.

The blocks of a model are alike but for their arrays. In a program, the first of them is traced as a
function, and the others call it. JAX differentiates and lowers a function that is called several
times once; XLA then puts it in the place of each call, so that the compiled program is the same:
only the gradient of what several blocks read, such as an encoder's output, is summed in another
order. What is traced later is traced anew: a part may have been changed in between.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer

_APART: contextvars.ContextVar[bool] = contextvars.ContextVar("apart", default=False)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """The time in which every call is traced by itself, for who wants to see each of them."""
    token = _APART.set(True)
    try:
        yield
    finally:
        _APART.reset(token)


def traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose calls with like arguments share a trace; for several calls in a row.

    Arguments are alike if all but the numbers in their arrays is equal. What `traced_once` gives
    another time shares nothing with it. Outside of a `jit`, where nothing is traced as a whole,
    this is `function` itself. Where the shared trace fails, a call is made by itself: because a
    part holds what has no hash, so that it cannot be compared; or because of a mistake, which is
    then told of the part in which it is, not of the first one like it.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp
        >>> from eqxformer.traces import traced_once
        >>> def double(x):
        ...     print("traced")
        ...     return 2 * x
        >>> @jax.jit
        ... def twice(x):
        ...     once = traced_once(double)
        ...     return once(once(x))
        >>> int(twice(jnp.array(3)))
        traced
        12
    """
    if _APART.get() or not _staged():
        return function
    shared = _shared(function)

    def call(*args: Any) -> Any:
        try:
            return shared(*args)
        except Exception:
            pass  # the call by itself tells what is wrong, if anything is
        return function(*args)

    return call


class _Rest(eqx.Module):
    """What of a result is no array."""

    tree: Any = eqx.field(static=True)


def _shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under a `jit` of its own, whose traces end with it; those of Equinox stay."""

    def own(arrays: Any, leaves: tuple[Any, ...], structure: Any) -> tuple[Any, _Rest]:
        rest = jax.tree.unflatten(structure, leaves)
        results, beside = eqx.partition(function(*eqx.combine(arrays, rest)), eqx.is_array)
        return results, _Rest(beside)

    own.__name__ = own.__qualname__ = getattr(function, "__name__", "own")
    jitted = jax.jit(own, static_argnums=(1, 2))

    def call(*args: Any) -> Any:
        arrays, rest = eqx.partition(args, eqx.is_array)
        leaves, structure = jax.tree.flatten(rest)
        results, beside = jitted(arrays, tuple(leaves), structure)
        return eqx.combine(results, beside.tree)

    return call


def _staged() -> bool:
    """Whether operations go into a program: under `jit`, even those on plain numbers do."""
    return isinstance(jnp.zeros(()), Tracer)
