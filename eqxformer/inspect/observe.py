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
from typing import Any

import equinox as eqx
import jax

from eqxformer.blocks.stack import Stack, Unrolled

METHODS = ("__call__", "run", "look", "remember")

# Called around a part's method: path, method's name, the method bound to its part, arguments.
Observer = Callable[[str, str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def run_observed(function: Callable[[Any], Any], model: Any, observer: Observer) -> Any:
    """`function(model)`, in which `observer` stands round every call of a part of the model.

    Arguments:
        function: calls the model, or one of its methods.
        model: a module; its stacks are run block by block, whatever their layout says.
        observer: is given the path of the part, the name of the method, the method itself and its
            arguments, and returns the result. Calls that a part makes of its own methods are not
            shown, `remember` excepted.
    """
    model = one_by_one(model)
    named = dict(named_parts(model))
    kinds = {type(part) for part in named.values()}
    paths = {id(part): path for path, part in reversed(named.items())}
    running: set[int] = set()

    def around(part: Any, method: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path = paths.get(id(part))
        if path is None or (id(part) in running and method != "remember"):
            return call(*args, **kwargs)
        fresh = id(part) not in running
        running.add(id(part))
        try:
            return observer(path, method, call, args, kwargs)
        finally:
            if fresh:
                running.discard(id(part))

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


_AROUND: contextvars.ContextVar[Callable[..., Any] | None] = contextvars.ContextVar(
    "around", default=None
)
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
        return around(self, method, functools.partial(function, self), args, kwargs)

    return called
