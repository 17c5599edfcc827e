"""What parts get and give while a model runs, seen from outside: no part knows of it.

For as long as somebody observes, the methods by which parts are called (`__call__`, `run`,
`run_valid`, `look`, `remember`) stand in their classes with a look-out round them. The look-out
asks a context variable who observes: in every other thread that is nobody, and the method is called
as ever. Whoever ends last puts the methods back. A part is recognised by its identity; where JAX
has taken a part apart and put it together again (in a gradient, a scan), by its class, with `*` for
its number.
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
from eqxformer.traces import apart

METHODS = ("__call__", "run", "run_valid", "look", "remember")


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


def run_observed(
    function: Callable[[Any], Any], model: Any, observer: Observer, *, unroll: bool = True
) -> Any:
    """`function(model)`, in which `observer` stands round every call of a part of the model.

    Arguments:
        function: calls the model, or one of its methods.
        model: a module.
        unroll: whether stacks are run block by block, whatever their layout says; a block that is
            scanned has the path `blocks.*`.
        observer: is given each `Visit` and returns its result. Calls that a part makes of its own
            methods are not shown, `remember` excepted.
    """
    model = one_by_one(model) if unroll else model
    places = _Places(model)

    def around(visit: Visit) -> Any:
        place = places.of(visit.part)
        within = id(visit.part) in places.running
        if place is None or (within and visit.method != "remember"):
            return visit.go_on()
        with places.entered(visit.part, place):
            return observer(visit._replace(path=place))

    with apart(), _watched(places.kinds):
        token = _AROUND.set(around)
        try:
            return function(model)
        finally:
            _AROUND.reset(token)


class _Places:
    """Where the parts are that are called: those of a model, and of copies that JAX makes of it."""

    def __init__(self, model: Any):
        named = list(named_parts(model))
        self.kinds = {type(part) for _, part in named}
        self.running: list[int] = []
        self._model = model  # kept, so that no identity is given again
        self._scopes = [{id(part): path for path, part in reversed(named)}]
        self._paths: list[str] = []
        self._alike: dict[type, set[str]] = collections.defaultdict(set)
        for path, part in named:
            starred = ".".join("*" if name.isdigit() else name for name in path.split("."))
            self._alike[type(part)].add(starred)

    def of(self, part: Any) -> str | None:
        """The path of a part; None where it is not known."""
        for scope in reversed(self._scopes):
            if id(part) in scope:
                return scope[id(part)]
        alike = self._alike.get(type(part), set())
        above = self._paths[-1] if self._paths else ""
        inside = {path for path in alike if not above or path.startswith(f"{above}.")}
        return inside.pop() if len(inside) == 1 else None

    @contextlib.contextmanager
    def entered(self, part: Any, path: str) -> Iterator[None]:
        """The time while a part runs; of a copy, its own parts are known for as long."""
        copy = not any(id(part) in scope for scope in self._scopes)
        if copy:
            self._scopes.append({id(each): name for name, each in named_parts(part, path)})
        self.running.append(id(part))
        self._paths.append(path)
        try:
            yield
        finally:
            self._paths.pop()
            self.running.pop()
            if copy:
                self._scopes.pop()


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
