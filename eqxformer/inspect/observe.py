"""What parts get and give while a model runs, seen from outside: no part knows of it.

For as long as somebody observes, the methods by which parts are called (`__call__`, `run`, `look`,
`remember`) stand in their classes with a look-out round them. The look-out asks a context variable
who observes: in every other thread that is nobody, and the method is called as ever. Whoever ends
last puts the methods back. A part is recognised by its identity, so blocks must run one by one and
in the very trace in which they are observed; `run_observed` sees to both.
"""

import collections
import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax

from eqxformer.blocks.stack import Stack, Unrolled

METHODS = ("__call__", "run", "look", "remember")


class Visit(NamedTuple):
    """A call of a part: its path, the part, the name of the method, and what it is called with."""

    path: str
    part: Any
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    function: Callable[..., Any]

    def go_on(self) -> Any:
        """The result of the call."""
        return self.function(self.part, *self.args, **self.kwargs)


# Stands round a call and gives its result, which it may have from `visit.go_on()`.
Observer = Callable[[Visit], Any]


def run_observed(function: Callable[[Any], Any], model: Any, observer: Observer) -> Any:
    """`function(model)`, in which `observer` stands round every call of a part of the model.

    Arguments:
        function: calls the model, or one of its methods.
        model: a module; its stacks are run block by block, whatever their layout says.
        observer: is given each `Visit` and returns its result. Calls that a part makes of its own
            methods are not shown, `remember` excepted.
    """
    model = one_by_one(model)
    named = dict(named_parts(model))
    kinds = {type(part) for part in named.values()}
    paths = {id(part): path for path, part in reversed(named.items())}
    running: set[int] = set()

    def around(visit: Visit) -> Any:
        path = paths.get(id(visit.part))
        within = id(visit.part) in running
        if path is None or (within and visit.method != "remember"):
            return visit.go_on()
        running.add(id(visit.part))
        try:
            return observer(visit._replace(path=path))
        finally:
            if not within:
                running.discard(id(visit.part))

    with _watched(kinds):
        token = _AROUND.set(around)
        try:
            return function(model)
        finally:
            _AROUND.reset(token)


def one_by_one(model: Any) -> Any:
    """The model with every stack stored and run block by block, without rematerialisation."""

    def single(node: Any) -> Any:
        if not isinstance(node, Stack):
            return node
        return Stack.of(tuple(node), Unrolled(), (None,) * len(node))

    return jax.tree.map(single, model, is_leaf=lambda node: isinstance(node, Stack))


def named_parts(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every module inside of `node`, itself first, with its path."""
    if isinstance(node, Stack):
        node = tuple(node)
    if isinstance(node, eqx.Module):
        yield path, node
        children = vars(node).items()
    elif isinstance(node, tuple | list):
        children = enumerate(node)
    elif isinstance(node, dict):
        children = node.items()
    else:
        return
    for name, child in children:
        yield from named_parts(child, f"{path}.{name}" if path else str(name))


_AROUND: contextvars.ContextVar[Observer | None] = contextvars.ContextVar("around", default=None)
_LOCK = threading.Lock()
_HOLDERS: collections.Counter[type] = collections.Counter()
_ORIGINAL: dict[type, dict[str, Any]] = {}


@contextlib.contextmanager
def _watched(kinds: set[type]) -> Iterator[None]:
    """The classes, and those that they have the methods from, with look-outs round the methods."""
    owners = {owner for kind in kinds for owner in kind.__mro__ if _own(owner)}
    with _LOCK:
        for owner in owners:
            if not _HOLDERS[owner]:
                _ORIGINAL[owner] = _own(owner)
                for method, function in _ORIGINAL[owner].items():
                    setattr(owner, method, _look_out(method, function))
            _HOLDERS[owner] += 1
    try:
        yield
    finally:
        with _LOCK:
            for owner in owners:
                _HOLDERS[owner] -= 1
                if not _HOLDERS[owner]:
                    for method, function in _ORIGINAL.pop(owner).items():
                        setattr(owner, method, function)


def _own(owner: type) -> dict[str, Any]:
    """The observed methods that a class of modules defines itself."""
    if not issubclass(owner, eqx.Module) or owner is eqx.Module:
        return {}
    found = {method: vars(owner).get(method) for method in METHODS}
    return {method: function for method, function in found.items() if callable(function)}


def _look_out(method: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        around = _AROUND.get()
        if around is None:
            return function(self, *args, **kwargs)
        return around(Visit("", self, method, args, kwargs, function))

    return called
