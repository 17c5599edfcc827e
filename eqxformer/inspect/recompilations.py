"""A log of what is compiled, and which argument made it necessary.

JAX tells its listeners of every compilation while the call that asked for it is still running. The
frames of that call are then looked through for the function that the user has compiled and for what
it was called with, which is compared with its earlier calls.
"""

import contextlib
import dataclasses
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax import monitoring

from eqxformer.inspect.tabulate import short_shape

_EVENT = "/jax/core/compile/backend_compile_duration"
_SHOWN = 3  # changes of one compilation that are told


@dataclasses.dataclass(frozen=True)
class Recompilation:
    """A function that was compiled, and why.

    Arguments:
        function: its name, with the module that it is from.
        number: how often it has been compiled within the log, this time included.
        seconds: that the compiler took.
        changes: for each argument that is not as in any call before, its place, what it was, and
            what it is now; empty for the first time.

    Example:
        >>> import eqxformer as ef
        >>> changes = (("batch.tokens", "i32[8,64]", "i32[8,32]"),)
        >>> print(ef.inspect.Recompilation("step", 2, 1.5, changes))
        step: compiled again (number 2), 1.5 s: batch.tokens was i32[8,64], is i32[8,32]
    """

    function: str
    number: int
    seconds: float
    changes: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        if self.number == 1:
            return f"{self.function}: compiled in {self.seconds:.1f} s"
        told = [f"{place} was {old}, is {new}" for place, old, new in self.changes[:_SHOWN]]
        more = len(self.changes) - _SHOWN
        told += [f"and {more} more"] if more > 0 else []
        why = "; ".join(told) or "nothing that can be told has changed"
        return (
            f"{self.function}: compiled again (number {self.number}), {self.seconds:.1f} s: {why}"
        )


@contextlib.contextmanager
def recompilations(
    tell: Callable[[Recompilation], Any] | None = None,
) -> Iterator[list[Recompilation]]:
    """Collects every compilation of a function of yours inside, with the argument that caused it.

    Functions under `jax.jit` and `eqx.filter_jit` are seen, those of eqxformer too, and not what
    JAX compiles of its own for single operations. Of several compilations of one function, the
    calls are compared: shapes, number types, and the values of what is no array. Only what this
    thread compiles is told; a function that was compiled before is new to the log.

    Arguments:
        tell: is called with each when it happens, such as `print`.

    On the command line `eqxformer recompilations script.py`.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> double = jax.jit(lambda x: 2 * x)
        >>> with ef.inspect.recompilations() as log:
        ...     _ = double(jnp.ones(3)), double(jnp.ones(4)), double(jnp.ones(4))
        >>> log[1].changes
        (('x', 'f32[3]', 'f32[4]'),)
    """
    log: list[Recompilation] = []
    before: dict[Any, list[dict[str, str]]] = {}
    thread = threading.get_ident()

    def listener(event: str, duration_secs: float, **_: Any) -> None:
        if event != _EVENT or threading.get_ident() != thread:
            return
        call = _call(sys._getframe(1))
        if call is not None:
            earlier = before.setdefault(call.key, [])
            log.append(call.compilation(duration_secs, earlier))
            earlier.append(call.arguments)
            if tell is not None:
                tell(log[-1])

    monitoring.register_event_duration_secs_listener(listener)
    try:
        yield log
    finally:
        monitoring.unregister_event_duration_listener(listener)


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call of a compiled function: what tells it from others, its name, and its arguments."""

    key: Any
    name: str
    arguments: dict[str, str]

    def compilation(self, seconds: float, earlier: list[dict[str, str]]) -> Recompilation:
        """What to tell of it, given the arguments of the calls before."""
        changes = min((_changes(each, self.arguments) for each in earlier), key=len, default=())
        return Recompilation(self.name, len(earlier) + 1, seconds, changes)


def _call(frame: FrameType | None) -> _Call | None:
    """The call that is being compiled, from the frames that have led to it.

    The outermost compiled function is what the user has called. JAX keeps what is called in a frame
    `cache_miss`, Equinox in one `_call` round that.
    """
    found = None
    while frame is not None:
        values, name = frame.f_locals, frame.f_code.co_name
        home = frame.f_globals.get("__name__", "")
        if name == "cache_miss" and home.startswith("jax."):
            function = values.get("fun")
            if function is not None and not _jaxs_own(function):
                found = _called(function, values.get("args", ()), values.get("kwargs", {}))
        elif name == "_call" and home.startswith("equinox."):
            function = getattr(values.get("jit_wrapper"), "__wrapped__", None)
            if function is not None and not _jaxs_own(function):
                found = _called(function, values.get("args", ()), values.get("kwargs", {}))
        frame = frame.f_back
    return found


def _jaxs_own(function: Any) -> bool:
    module = getattr(function, "__module__", "") or ""
    return module.partition(".")[0] in ("jax", "jaxlib", "equinox")


def _called(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Call:
    arguments: dict[str, str] = {}
    if isinstance(function, eqx.Module):  # a model that is compiled itself
        arguments.update(_described(type(function).__name__, function))
        function = type(function)
    plain = inspect.unwrap(function) if callable(function) else function
    for label, value in [*zip(_names(plain, len(args)), args, strict=True), *kwargs.items()]:
        arguments.update(_described(label, value))
    code = getattr(plain, "__code__", None)
    name = getattr(plain, "__qualname__", type(plain).__qualname__)
    if code is not None and "<lambda>" in name:
        name = f"{name} in line {code.co_firstlineno} of {os.path.basename(code.co_filename)}"
    return _Call((name, id(code or plain)), name, arguments)


def _names(function: Any, count: int) -> list[str]:
    """The names of so many positional arguments, as far as the function tells them."""
    try:
        called = function.__call__ if isinstance(function, type) else function
        known = [name for name in inspect.signature(called).parameters if name != "self"]
    except (TypeError, ValueError):
        known = []
    return [known[i] if i < len(known) else f"args[{i}]" for i in range(count)]


def _described(label: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every leaf of an argument by its place, and what of it a compiled program depends on."""
    if isinstance(value, jax.Array | np.ndarray):
        yield label, short_shape(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value) if hasattr(value, f.name)]
        yield label, type(value).__qualname__.removesuffix(".Config")
        for name in names:
            yield from _described(f"{label}.{name}", getattr(value, name))
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from _described(f"{label}[{i}]", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _described(f"{label}[{key!r}]", item)
    elif value is None or jax.tree_util.all_leaves([value]):
        yield label, _spelled(value)
    else:  # of another kind that JAX takes apart
        for path, leaf in jax.tree_util.tree_leaves_with_path(value):
            place = f"{label}{jax.tree_util.keystr(path)}"
            yield place, short_shape(leaf) if eqx.is_array(leaf) else _spelled(leaf)


def _spelled(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _changes(old: dict[str, str], new: dict[str, str]) -> tuple[tuple[str, str, str], ...]:
    """What differs between two calls."""
    names = [*new, *(name for name in old if name not in new)]
    found = [(n, old.get(n, "absent"), new.get(n, "absent")) for n in names]
    return tuple(change for change in found if change[1] != change[2])
