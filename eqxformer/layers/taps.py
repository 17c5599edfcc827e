"""Places in a part's work whose values can be looked at and replaced by name.

A part says `x = tap(self, "weights", x)`. That is `x`, and adds nothing to a compiled program,
unless the part holds taps: those that are named to `ef.capture` and `ef.patch` do. What a tap keeps
must leave the transformations that the model itself makes as one of their results: `through` and
`collected` see to that where blocks are rematerialised or scanned. Out of a `jit` or a loop of the
function that is called, such as a generation, the running program sends it to the host.
"""

import contextlib
import contextvars
import dataclasses
import functools
import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.extend.core
from jaxtyping import Array

from eqxformer.traces import apart

HELD = "held_taps"  # the field of a tapped part
_home = jax.extend.core if hasattr(jax.extend.core, "get_opaque_trace_state") else jax.core


class Tap(eqx.Module):
    """What is done with the value at one site of a part: it is kept, or another takes its place.

    Arguments:
        change: a function from the value to another, or the other one; None where it is kept.
        keep: what is kept of it: a function of the value, or None for all.
        site: which value of the part; `output` and `input` are there for every part.
        index: the head, of a value that has one for each; None for all.
        names: what the value is called: one name, or one for each layer that is stacked here.
        sends: whether compiled programs may send what is kept to the host; see `sending`.
    """

    change: Any
    keep: Callable[[Array], Any] | None
    site: str = eqx.field(static=True)
    index: int | None = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)
    sends: bool = eqx.field(static=True, default=False)

    def __call__(self, value: Any) -> Any:
        own = value if self.index is None else self._head(value)
        if self.change is None:
            _record(self.names, own, self.keep)
            return value
        new = self.change if eqx.is_array(self.change) else self.change(own)
        self._check(new, own)
        return new if self.index is None else value.at[..., self.index, :, :].set(new)

    def _head(self, value: Array) -> Array:
        heads, index = value.shape[-3], self.index
        if index is None or index >= heads:
            raise ValueError(f"`{self.names[0]}` does not exist: there are {heads} heads, from 0.")
        return value[..., index, :, :]

    def _check(self, new: Any, old: Any) -> None:
        if not eqx.is_array(new) or (new.shape, new.dtype) != (old.shape, old.dtype):
            got = f"{new.dtype}{list(new.shape)}" if eqx.is_array(new) else type(new).__name__
            raise ValueError(
                f"What takes the place of `{self.names[0]}` must be {old.dtype}{list(old.shape)}, "
                f"as it is; got {got}. Reshape it, or cast it with `astype`."
            )


def tap(part: Any, site: str, value: Any, batch: tuple[int, ...] | None = None) -> Any:
    """`value`, which `ef.capture` and `ef.patch` can then name as `site` of the part.

    A part of your own says so where it makes the value, and lists its sites in the class variable
    `sites`.

    Arguments:
        part: the part itself, `self`.
        site: what the value is called.
        value: an array; any other value is only given back.
        batch: the axes that the first axis of `value` stands for, if it is several.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> from typing import ClassVar
        >>> class Swish(ef.MLP):
        ...     sites: ClassVar[tuple[str, ...]] = ("neurons",)
        ...
        ...     def run(self, x, *, key=None):
        ...         return self.down(ef.tap(self, "neurons", jax.nn.swish(self.up(x)))), None
        >>> mlp = Swish(8, hidden=16, key=jax.random.key(0))
        >>> ef.capture(mlp, "neurons")(jnp.ones((3, 8)))[1]["neurons"].shape
        (3, 16)
    """
    for each in _held(part):
        if each.site == site and eqx.is_array(value):
            shape = value.shape
            value = value if batch is None else value.reshape(*batch, *shape[1:])
            value = each(value)
            value = value if batch is None else value.reshape(shape)
    return value


def untapped(part: Any) -> Any:
    """The part without its own taps, for whoever offers its input and output to them himself."""
    return eqx.tree_at(_held, part, ()) if _held(part) else part


def kind_of(part: Any) -> type:
    """The class of a part, with taps or without."""
    return type(part).__base__ if hasattr(part, HELD) else type(part)  # pyright: ignore[reportReturnType]


def is_tapped(part: Any, *sites: str) -> bool:
    """Whether a part holds taps at one of these sites."""
    return any(each.site in sites for each in _held(part))


def is_changed(part: Any, *sites: str) -> bool:
    """Whether a value at one of these sites is replaced."""
    return any(each.site in sites and each.change is not None for each in _held(part))


class Taken(eqx.Module):
    """What taps have kept, in order of execution, each with its names (see `Tap`)."""

    names: tuple[tuple[str, ...], ...] = eqx.field(static=True)
    values: tuple[Any, ...]


class Collector:
    """Where taps put what they keep, while a function runs as Python.

    `unreachable` are the names of values in a transformation that nobody brings values out of, such
    as a `jit` in the function that is called; `sent` those that programs have sent from there.

    Arguments:
        receives: whether values may be sent here by compiled programs, while they run.
    """

    def __init__(self, receives: bool = False) -> None:
        self.entries: list[tuple[tuple[str, ...], Any]] = []
        self.unreachable: set[str] = set()
        self.sent: set[str] = set()
        self.receives = receives
        self._state = _trace_state()

    def add(
        self, names: tuple[str, ...], value: Any, keep: Callable[[Array], Any] | None = None
    ) -> None:
        """Takes a value, has it sent, or notes that it cannot be had."""
        if _trace_state() == self._state:
            if self.receives:
                jax.effects_barrier()  # what was sent before comes before
            self.entries.append((names, value if keep is None else keep(value)))
        elif self.receives:
            kept = value if keep is None else keep(value)
            jax.debug.callback(functools.partial(_arrived, names), kept, ordered=True)
        else:
            self.unreachable.update(names)

    def taken(self) -> Taken:
        """All that has been taken."""
        return Taken(tuple(names for names, _ in self.entries), tuple(v for _, v in self.entries))


_COLLECTOR: contextvars.ContextVar[Collector | None] = contextvars.ContextVar(
    "collector", default=None
)
_RECEIVER: list[Collector] = []  # the last is the one that is sent to; programs run in any thread
_RECEIVING = threading.RLock()


@contextlib.contextmanager
def collecting(receives: bool = False) -> Iterator[Collector]:
    """A collector for what is tapped inside; what is around gets nothing of it."""
    collector = Collector(receives)
    token = _COLLECTOR.set(collector)
    try:
        with apart():
            yield collector
    finally:
        _COLLECTOR.reset(token)


@contextlib.contextmanager
def receiving() -> Iterator[Collector]:
    """A collector that compiled programs send to as well, all of it there at the end.

    Of several threads, one at a time can have it. The model must be one from `sending`.
    """
    with _RECEIVING, collecting(receives=True) as collector:
        _RECEIVER.append(collector)
        try:
            yield collector
        finally:
            jax.effects_barrier()  # also behind an error: what is under way is nobody else's
            _RECEIVER.pop()


def sending(model: Any) -> Any:
    """The model with taps that may send: another one to `jit`, which keeps what it has compiled."""

    return _each_tap(model, lambda each: dataclasses.replace(each, sends=True))


def taps_of_layers(stacked: Any, index: int | slice) -> Any:
    """Stacked layers, of which some are about to be taken, with taps that are named after these."""
    index = slice(index, index + 1) if isinstance(index, int) else index

    def named(each: Tap) -> Tap:
        names = each.names[index] if len(each.names) > 1 else each.names  # one is of a shared part
        return dataclasses.replace(each, names=names)

    return _each_tap(stacked, named)


def _each_tap(node: Any, change: Callable[[Tap], Tap]) -> Any:
    """A copy in which every tap is changed."""

    def changed(node: Any) -> Any:
        return change(node) if isinstance(node, Tap) else node

    return jax.tree.map(changed, node, is_leaf=lambda node: isinstance(node, Tap))


def _arrived(names: tuple[str, ...], value: Any) -> None:
    """Takes what a running program has sent."""
    if _RECEIVER:
        _RECEIVER[-1].entries.append((names, value))
        _RECEIVER[-1].sent.update(names)


def is_collecting() -> bool:
    """Whether anybody wants what is tapped here, so that it should be computed in the open."""
    return _COLLECTOR.get() is not None


def collected(function: Callable[..., Any]) -> Callable[..., tuple[Any, Taken]]:
    """`function`, and beside its result what was tapped in it, if anybody outside collects."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> tuple[Any, Taken]:
        outer = _COLLECTOR.get()
        if outer is None:
            return function(*args, **kwargs), Taken((), ())
        with collecting(outer.receives) as collector:
            result = function(*args, **kwargs)
        outer.unreachable |= collector.unreachable
        return result, collector.taken()

    return run


def hand_on(taken: Taken, layers: int | None = None) -> None:
    """Gives what was taken to the collector here.

    Arguments:
        layers: of how many layers each value is a stack, after a scan; each goes on by itself,
            layer by layer.
    """
    collector = _COLLECTOR.get()
    if collector is None:
        return
    pairs = list(zip(taken.names, taken.values, strict=True))
    if layers is None:
        for names, value in pairs:
            collector.add(names, value)
        return
    for i in range(layers):
        for names, value in pairs:
            own = names if len(names) == 1 else names[i : i + 1]  # one is of a part shared by all
            collector.add(own, jax.tree.map(operator.itemgetter(i), value))


def through(
    transform: Callable[[Callable[..., Any]], Callable[..., Any]], function: Callable[..., Any]
) -> Callable[..., Any]:
    """`transform(function)`, which also brings out what is tapped inside."""
    inner = transform(collected(function))

    def run(*args: Any, **kwargs: Any) -> Any:
        result, taken = inner(*args, **kwargs)
        hand_on(taken)
        return result

    return run


def _record(names: tuple[str, ...], value: Any, keep: Callable[[Array], Any] | None) -> None:
    collector = _COLLECTOR.get()
    if collector is not None:
        collector.add(names, value, keep)


def _held(part: Any) -> tuple[Tap, ...]:
    return getattr(part, HELD, ())


def _trace_state() -> Any:
    """What tells in which transformation of JAX this runs; equal where it is the same one."""
    return _home.get_opaque_trace_state(convention="nnx")
