"""Taps put into a model: its named parts become parts of the same kind that hold taps."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxformer.blocks.stack import Stack
from eqxformer.inspect.sites import Site
from eqxformer.layers.taps import HELD, Tap, tap


class Wish(NamedTuple):
    """What is to be done at a site; see `Tap`."""

    site: Site
    change: Any = None
    keep: Callable[..., Any] | None = None

    @property
    def what(self) -> str:
        """The site as the part says it: the stream that leaves a block is its output."""
        return "output" if self.site.what == "residual" else self.site.what


def with_taps(model: Any, wishes: Iterable[Wish]) -> Any:
    """The model with taps for these wishes; all else is the same, arrays are shared.

    Layers that are stored as one array stay so as far as their wishes are alike: neighbours that
    differ are stored, and run, in groups of their own.
    """
    by_part: dict[str, list[Wish]] = {}
    for wish in wishes:
        by_part.setdefault(wish.site.path, []).append(wish)
    return _visited(model, ("",), by_part)


def _visited(node: Any, paths: tuple[str, ...], wishes: dict[str, list[Wish]]) -> Any:
    """A node with taps below it and in it; `paths` are those of all layers that it stands for."""
    if isinstance(node, Stack):
        return _visited_stack(node, paths[0], wishes)
    if isinstance(node, eqx.Module):
        names = [f.name for f in dataclasses.fields(node) if not f.metadata.get("static")]
        old = {name: getattr(node, name) for name in names if hasattr(node, name) and name != HELD}
        new = {name: _visited(child, _below(paths, name), wishes) for name, child in old.items()}
        changed = {name: child for name, child in new.items() if child is not old[name]}
        node = _replaced(node, type(node), changed) if changed else node
        own = [wishes.get(path, []) for path in paths]
        return _tapped(node, list(zip(*own, strict=True))) if own[0] else node
    if isinstance(node, (tuple, list)) and not hasattr(node, "_fields"):
        new = [_visited(child, _below(paths, i), wishes) for i, child in enumerate(node)]
        same = all(a is b for a, b in zip(new, node, strict=True))
        return node if same else type(node)(new)
    if isinstance(node, dict):
        new = {name: _visited(child, _below(paths, name), wishes) for name, child in node.items()}
        return node if all(new[name] is node[name] for name in node) else new
    return node


def _visited_stack(stack: Stack, path: str, wishes: dict[str, list[Wish]]) -> Stack:
    fronts = [f"{path}.{i}".removeprefix(".") for i in range(len(stack))]
    asked = [_asked(front, wishes) for front in fronts]
    if not any(asked):
        return stack
    sizes, first = [], 0
    for size in stack.sizes:
        sizes += [None] if size is None else _runs(asked[first : first + size])
        first += size or 1
    stack, groups, first = stack.regrouped(tuple(sizes)), [], 0
    for group, size in zip(stack.groups, sizes, strict=True):
        groups.append(_visited(group, tuple(fronts[first : first + (size or 1)]), wishes))
        first += size or 1
    return Stack(tuple(groups), tuple(sizes), stack.layout)


def _asked(front: str, wishes: dict[str, list[Wish]]) -> list[Any]:
    """What is asked of one layer, in a form in which layers can be compared."""
    found = []
    for path, some in wishes.items():
        if path == front or path.startswith(f"{front}."):
            for wish in some:
                arrays, rest = eqx.partition(wish.change, eqx.is_array)
                shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(arrays)]
                below = path.removeprefix(front)
                kind = (jax.tree.structure(wish.change), jax.tree.leaves(rest), shapes)
                found.append((below, wish.site.what, wish.site.head, wish.keep, kind))
    return found


def _runs(asked: list[Any]) -> list[int | None]:
    """How many neighbours are alike, in turn; None for one alone."""
    counts: list[int] = []
    for i, each in enumerate(asked):
        if i and each == asked[i - 1]:
            counts[-1] += 1
        else:
            counts.append(1)
    return [count if count > 1 else None for count in counts]


def _tapped(part: Any, layers: list[tuple[Wish, ...]]) -> Any:
    """The part with a tap for each wish, of which there is one for every layer stacked in it."""
    taps = tuple(_tap(wishes) for wishes in layers)
    before = getattr(part, HELD, ())
    cls = type(part) if hasattr(part, HELD) else tapped_class(type(part))
    return _replaced(part, cls, {HELD: (*before, *taps)})


def _tap(wishes: tuple[Wish, ...]) -> Tap:
    first, *others = wishes
    change, names = first.change, tuple(wish.site.name for wish in wishes)
    if others:
        every = [wish.change for wish in wishes]
        change = jax.tree.map(lambda *x: jnp.stack(x) if eqx.is_array(x[0]) else x[0], *every)
    return Tap(change, first.keep, first.what, first.site.head, names)


@functools.cache
def tapped_class(cls: type) -> type:
    """The class of parts that are like those of `cls` and hold taps."""
    methods = [name for name in ("run", "look") if hasattr(cls, name)] or ["__call__"]
    fields = {"__annotations__": {HELD: tuple[Tap, ...]}, HELD: ()}
    about = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    offered = {name: _offered(getattr(cls, name)) for name in methods}
    return type(cls)(cls.__name__, (cls,), {**about, **fields, **offered})


def _offered(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method with its input and output offered to taps."""

    @functools.wraps(method)
    def offered(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, tap(self, "input", x), *args, **kwargs)
        if isinstance(result, tuple):  # beside what a part hands on
            return (tap(self, "output", result[0]), *result[1:])
        return tap(self, "output", result)

    return offered


def _below(paths: tuple[str, ...], name: str | int) -> tuple[str, ...]:
    return tuple(f"{path}.{name}".removeprefix(".") for path in paths)


def _replaced(part: Any, cls: type, fields: dict[str, Any]) -> Any:
    """A copy of a part, of this class, with other values in some fields."""
    new = object.__new__(cls)
    for name, value in {**vars(copy.copy(part)), **fields}.items():
        object.__setattr__(new, name, value)
    return new
