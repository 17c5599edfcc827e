"""From axis words to axes of a mesh: which axis of an array each axis of the mesh cuts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jax.sharding import PartitionSpec

from eqxformer.axes import COPIES, leading_copies
from eqxformer.config import Config
from eqxformer.constraints import MESH_AXES


class Cut(Config):
    """One axis of the mesh, and what of an array it cuts: the first of `words` that it divides.

    Arguments:
        axis: the axis of the mesh.
        words: axis words in the order in which they are tried. A word stands also for a product
            that begins with it: `heads` cuts `heads*head_dim` between heads, where the number of
            heads is a multiple of the axis. `any` stands for every word but `layers`, the longest
            axis first, anywhere it divides.
        least: axes that an array must have to be cut; those in front that only count copies of it
            are not counted: layers, experts, the heads of a norm with gains for each.

    Example:
        >>> import eqxformer as ef
        >>> rules = ef.Rules(cuts=(ef.Cut("tensor", ("hidden",)),))
        >>> tuple(rules.place(("dim", "hidden"), (64, 256), {"tensor": 2}, {}).spec)
        (None, 'tensor')
    """

    axis: str
    words: tuple[str, ...]
    least: int = 1

    def check(self) -> None:
        if self.axis not in MESH_AXES:
            raise ValueError(f"`axis` must be one of {', '.join(MESH_AXES)}; got {self.axis}.")
        if not self.words:
            raise ValueError("`words` must name at least one axis word; got none.")


BY_EXPERT = Cut("expert", ("experts",))
BY_TENSOR = Cut("tensor", ("heads", "kv_heads", "hidden", "vocab"))
BY_FSDP = Cut("fsdp", ("dim", "any"), least=2)


class Rules(Config):
    """How the arrays of a model are cut by the axes of a mesh; axes that a mesh lacks cut nothing.

    So one value serves for all meshes: `data=8` leaves every array whole (data parallel), `fsdp=8`
    cuts each matrix along `dim` (fully sharded), `tensor=2` cuts heads, hidden units and the
    vocabulary (Shoeybi et al. 2019), `expert=4` deals out experts, and together they cut several
    axes of an array. Gains and biases are small and stay whole but for `tensor`.

    Arguments:
        cuts: what every axis of a mesh cuts, in the order in which they choose.
        uneven: what becomes of an array that should be cut and that nothing divides: `refuse` is an
            error that lists them all, `whole` leaves them whole on every device along that axis;
            `Placement.whole` lists them.

    Example:
        >>> import eqxformer as ef
        >>> rules = ef.Rules()
        >>> words, mesh = ("dim", "heads*head_dim"), {"fsdp": 4, "tensor": 2}
        >>> tuple(rules.place(words, (64, 48), mesh, {"heads": 6}).spec)
        ('fsdp', 'tensor')
    """

    cuts: tuple[Cut, ...] = (BY_EXPERT, BY_TENSOR, BY_FSDP)
    uneven: Literal["refuse", "whole"] = "refuse"

    def place(
        self,
        words: Sequence[str],
        shape: Sequence[int],
        sizes: Mapping[str, int],
        counts: Mapping[str, int],
        copies: int | None = None,
    ) -> "Place":
        """Where an array lies, and why it is not cut where it should be.

        Arguments:
            words: an axis word for every axis; for arrays that have none, as many `?`.
            shape: the array's.
            sizes: the axes of the mesh.
            counts: how many there are of words that stand in products; see `leaf_counts`.
            copies: how many axes in front only count copies; see `leaf_copies`. As many as are
                `layers` or `experts` if None.
        """
        taken: list[tuple[str, ...]] = [() for _ in shape]
        problems: list[str] = []
        own = len(words) - (leading_copies(words) if copies is None else copies)
        for cut in self.cuts:
            if sizes.get(cut.axis, 1) == 1 or own < cut.least:
                continue
            tried = [
                (place, word, _pieces(words[place], word, shape[place], counts))
                for word in cut.words
                for place in _places(words, shape, word)
            ]
            for place, _, pieces in tried:
                along = math.prod(sizes[axis] for axis in (*taken[place], cut.axis))
                if pieces and pieces % along == 0:
                    taken[place] = (*taken[place], cut.axis)
                    break
            else:
                problems += [_problem(cut.axis, sizes[cut.axis], tried)] if tried else []
        spec = (axes[0] if len(axes) == 1 else axes or None for axes in taken)
        return Place(tuple(shape), short(spec), tuple(problems))


class Place(NamedTuple):
    """How an array of a shape is cut, and a line for every axis that should cut it and cannot."""

    shape: tuple[int, ...]
    spec: PartitionSpec
    problems: tuple[str, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of the mesh that cut it."""
        each = (axes if isinstance(axes, tuple) else (axes,) for axes in self.spec)
        return tuple(axis for axes in each for axis in axes if axis is not None)


def short(spec: Iterable[Any]) -> PartitionSpec:
    """A partition without a word of the last axes, where these are whole, as JAX itself writes."""
    cuts = list(spec)
    while cuts and cuts[-1] is None:
        cuts.pop()
    return PartitionSpec(*cuts)


def _places(words: Sequence[str], shape: Sequence[int], word: str) -> list[int]:
    """The axes of an array that a word of a rule stands for."""
    if word in COPIES:  # the scores of a router are of experts, and no copies
        return [i for i, own in enumerate(words[: leading_copies(words)]) if own == word]
    if word != "any":
        return [i for i, own in enumerate(words) if own.split("*")[0] == word]
    inside = (i for i, own in enumerate(words) if own != "layers")
    return sorted(inside, key=lambda i: -shape[i])


def _pieces(own: str, word: str, size: int, counts: Mapping[str, int]) -> int:
    """Into how many pieces an axis may be cut; 0 where that is not known."""
    return size if word in (own, "any") else counts.get(word, 0)


def _problem(axis: str, size: int, tried: Sequence[tuple[int, str, int]]) -> str:
    numbers = {word: pieces for _, word, pieces in tried if word != "any"}
    if not numbers:
        return f"none of its axes is a multiple of {axis}={size}"
    said = (f"{word}={n}" if n else f"the unknown number of {word}" for word, n in numbers.items())
    return f"{' and '.join(said)} is not a multiple of {axis}={size}"
