"""Which linear maps of a model are meant: by their paths, or by what their axes are."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax

from eqxformer.axes import Axes, leaf_axes
from eqxformer.checkpoints.names import leads_to, name, unrolled
from eqxformer.config import nearest
from eqxformer.layers.linear import AbstractLinear

To = str | Axes | Sequence[str | Axes]


class Place(NamedTuple):
    """A linear map by itself: its shapes, and the axis words of its weight."""

    linear: Any
    words: tuple[str, ...]

    @property
    def in_experts(self) -> bool:
        """Whether it is one of a mixture's, stacked in one."""
        return len(self.words) > 2


def is_linear(node: Any) -> bool:
    """Whether a node of a model is a linear map of any kind."""
    return isinstance(node, AbstractLinear)


def places(model: Any) -> dict[str, Place]:
    """Every linear map of a model by its path, blocks numbered singly, an adapted one as one."""
    single = unrolled(eqx.filter_eval_shape(lambda: model))
    axes = leaf_axes(single)
    found = jax.tree_util.tree_leaves_with_path(single, is_leaf=is_linear)
    return {
        name(path): Place(node, _words(name(path), axes)) for path, node in found if is_linear(node)
    }


def chosen(model: Any, to: To) -> dict[str, Place]:
    """The linear maps that `to` means, by their paths.

    Raises `ValueError` for a path or for axes that no linear map has.
    """
    every, found = places(model), {}
    for each in (to,) if isinstance(to, str | Axes) else to:
        some = {path: place for path, place in every.items() if _meant(each, path, place)}
        if not some:
            raise ValueError(_nothing(each, every))
        found |= some
    if not found:
        raise ValueError("`to` must name at least one path or some `Axes`; got none.")
    return found


def all_or_none(names: tuple[str, ...], wanted: Iterable[str]) -> bool:
    """Whether the layers that share an array are wanted; `ValueError` where only some are."""
    count = len(set(names).intersection(wanted))
    if count not in (0, len(names)):
        raise ValueError(
            f"{names[0]} to {names[-1]} are stored as one array, of which {count} layers cannot be "
            "changed by themselves; name all of them, or use the layout `Unrolled()`."
        )
    return count > 0


def _words(path: str, axes: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    weights = (axes.get(f"{path}.{below}weight") for below in ("", "base."))
    return next((words for words in weights if words is not None), ("in_dim", "out_dim"))


def _meant(to: str | Axes, path: str, place: Place) -> bool:
    if isinstance(to, str):
        return leads_to(to, path)
    said = set(zip(("in_dim", "out_dim"), place.words[-2:], strict=True))
    return said.issuperset(to.words.items())


def _nothing(to: str | Axes, every: dict[str, Place]) -> str:
    if not every:
        return "The model has no linear map."
    if isinstance(to, Axes):
        known = sorted({" to ".join(place.words[-2:]) for place in every.values()})
        asked = ", ".join(f"{axis}={word}" for axis, word in to.words.items())
        return f"No linear map of the model has {asked}; they lead from {', '.join(known)}."
    starred = dict.fromkeys(_star(path) for path in every)
    return (
        f"`{to}` leads to no linear map of the model.{nearest(_star(to), starred)} "
        f"There are {', '.join(starred)}."
    )


def _star(path: str) -> str:
    return ".".join("*" if word.isdigit() else word for word in path.split("."))
