"""Taps put into a model: its named parts become parts of the same kind that hold taps."""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxformer.axes import leaf_axes
from eqxformer.blocks.stack import Stack
from eqxformer.checkpoints.names import is_array
from eqxformer.checkpoints.names import name as name_of
from eqxformer.inspect.sites import Site
from eqxformer.layers.taps import HELD, Tap, kind_of, tap

METHODS = ("run", "run_valid", "look")  # by which others call a part; of what has none, `__call__`


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
    differ are stored, and run, in groups of their own. Raises `ValueError` where that would cut
    another axis: for several models in one, as `vmap` makes them.
    """
    return _Change(wishes).of(model, ("",))


def without_patches(model: Any) -> Any:
    """The model as it was before it was patched: what can be saved, say.

    But for layers in one array of which some alone were patched: they stay in several arrays, which
    `rebuild(model, model.config)` puts together again.

    Example:
        >>> import equinox as eqx, eqxformer as ef, jax, jax.numpy as jnp
        >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
        >>> patched = ef.patch(mlp, {"up": jnp.zeros_like})
        >>> bool(eqx.tree_equal(ef.without_patches(patched), mlp))
        True
    """
    if isinstance(model, eqx.Module):
        held = hasattr(model, HELD)
        cls = kind_of(model)
        fields = {name: without_patches(x) for name, x in vars(model).items() if name != HELD}
        same = all(x is getattr(model, name) for name, x in fields.items())
        return model if same and not held else _made(cls, fields)
    if isinstance(model, dict):
        return {name: without_patches(child) for name, child in model.items()}
    if isinstance(model, (tuple, list)) and not hasattr(model, "_fields"):
        new = [without_patches(child) for child in model]
        same = all(a is b for a, b in zip(new, model, strict=True))
        return model if same else type(model)(new)
    return model


class _Change:
    """The walk through a model that puts taps in; a path stands for one layer of several."""

    def __init__(self, wishes: Iterable[Wish]):
        self.wishes: dict[str, list[Wish]] = {}
        for wish in wishes:
            self.wishes.setdefault(wish.site.path, []).append(wish)

    def of(self, node: Any, paths: Any) -> Any:
        """The node with taps in it and below it; itself where there are none."""
        if isinstance(node, Stack):
            return self._of_stack(node, paths[0])
        if isinstance(node, eqx.Module):
            return self._of_part(node, paths)
        if isinstance(node, dict):
            new = {name: self.of(child, _below(paths, name)) for name, child in node.items()}
            return node if all(new[name] is node[name] for name in node) else new
        if isinstance(node, (tuple, list)) and not hasattr(node, "_fields"):
            new = [self.of(child, _below(paths, i)) for i, child in enumerate(node)]
            same = all(a is b for a, b in zip(new, node, strict=True))
            return node if same else type(node)(new)
        return node

    def _of_part(self, part: Any, paths: Any) -> Any:
        names = [f.name for f in dataclasses.fields(part) if not f.metadata.get("static")]
        old = {name: getattr(part, name) for name in names if hasattr(part, name) and name != HELD}
        new = {name: self.of(child, _below(paths, name)) for name, child in old.items()}
        changed = {name: child for name, child in new.items() if child is not old[name]}
        part = _replaced(part, type(part), changed) if changed else part
        own = [self.wishes.get(path, []) for path in paths]
        return _tapped(part, zip(*own, strict=True)) if own[0] else part

    def _of_stack(self, stack: Stack, path: str) -> Stack:
        fronts = [f"{path}.{i}".removeprefix(".") for i in range(len(stack))]
        asked = [self._asked(front) for front in fronts]
        if not any(asked):
            return stack
        sizes, first = [], 0
        for size in stack.sizes:
            sizes += [None] if size is None else _runs(asked[first : first + size])
            first += size or 1
        if tuple(sizes) != stack.sizes:
            _refuse_several(stack, path)
        groups, first = [], 0
        for group, size in zip(stack.regrouped(tuple(sizes)).groups, sizes, strict=True):
            groups.append(self.of(group, tuple(fronts[first : first + (size or 1)])))
            first += size or 1
        return Stack(tuple(groups), tuple(sizes), stack.layout)

    def _asked(self, front: str) -> list[Any]:
        """What is asked of one layer, in a form in which layers can be compared."""
        return [
            (path.removeprefix(front), wish.site.what, wish.site.head, wish.keep, _kind(wish))
            for path, some in self.wishes.items()
            if path == front or path.startswith(f"{front}.")
            for wish in some
        ]


def _refuse_several(stack: Stack, path: str) -> None:
    """Raises `ValueError` for arrays with more axes than those of one model's layers."""
    words = leaf_axes(stack)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(stack):
        axes = words.get(name_of(keys))
        if axes is None or any(map(_several_axes, axes)):  # of any number of axes
            continue
        if is_array(leaf) and leaf.ndim > len(axes):
            raise ValueError(
                f"`{f'{path}.{name_of(keys)}'.removeprefix('.')}` must have the axes "
                f"`{' '.join(axes)}` where single layers are named; got the shape {leaf.shape}, as "
                "of several models in one. Put the vmap around `patch` or `capture`."
            )


def _several_axes(word: str) -> bool:
    """Whether a word of an annotation stands for any number of axes: `...`, `*any`, `#*any`."""
    return word == "..." or word.lstrip("#?").startswith("*")  # `heads*head_dim` is one


def _kind(wish: Wish) -> Any:
    """A change without its numbers."""
    arrays, rest = eqx.partition(wish.change, eqx.is_array)
    shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(arrays)]
    return jax.tree.structure(wish.change), jax.tree.leaves(rest), shapes


def _runs(asked: list[Any]) -> list[int | None]:
    """How many neighbours are alike, in turn; None for one alone."""
    counts: list[int] = []
    for i, each in enumerate(asked):
        if i and each == asked[i - 1]:
            counts[-1] += 1
        else:
            counts.append(1)
    return [count if count > 1 else None for count in counts]


def _tapped(part: Any, layers: Iterable[tuple[Wish, ...]]) -> Any:
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
    methods = [name for name in METHODS if hasattr(cls, name)] or ["__call__"]
    fields = {"__annotations__": {HELD: tuple[Tap, ...]}, HELD: ()}
    about = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    offered = {name: _offered(getattr(cls, name)) for name in methods}
    return type(cls)(cls.__name__, (cls,), {**about, **fields, **offered})


def _offered(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method with its input and output offered to taps, unless another of the part calls it."""

    @functools.wraps(method)
    def offered(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        # Not its identity, which is another one where JAX has put the part together again.
        part = (type(self), tuple(each.names for each in getattr(self, HELD)))
        if part in _RUNNING.get():
            return method(self, x, *args, **kwargs)
        x = tap(self, "input", x)
        with _running(part):
            result = method(self, x, *args, **kwargs)
        if isinstance(result, tuple):  # beside what a part hands on
            return (tap(self, "output", result[0]), *result[1:])
        return tap(self, "output", result)

    return offered


_RUNNING: contextvars.ContextVar[tuple[Any, ...]] = contextvars.ContextVar("running", default=())


@contextlib.contextmanager
def _running(part: Any) -> Iterator[None]:
    """The time while a method of a part runs."""
    token = _RUNNING.set((*_RUNNING.get(), part))
    try:
        yield
    finally:
        _RUNNING.reset(token)


def _below(paths: Any, name: str | int) -> tuple[str, ...]:
    return tuple(f"{path}.{name}".removeprefix(".") for path in paths)


def _replaced(part: Any, cls: type, fields: dict[str, Any]) -> Any:
    """A copy of a part, of this class, with other values in some fields."""
    return _made(cls, {**vars(part), **fields})


def _made(cls: Any, fields: dict[str, Any]) -> Any:
    """A module with these fields, past its `__init__`."""
    new = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(new, name, value)
    return new
