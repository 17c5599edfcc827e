"""The rows of the parameter table: what is known of every array, and how rows are folded."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
from jax.core import Tracer

from eqxformer.axes import leaf_axes
from eqxformer.checkpoints.names import every_name, is_array, name, unrolled


class Trains(Protocol):
    """What says which arrays are trained: `ef.Only`, `ef.Except`, `ef.Trainable`."""

    def mask(self, model: Any) -> Any:
        """A tree like the model's with True in place of what is trained and False elsewhere."""
        ...


class Row(NamedTuple):
    """A line of the table: an array, or several that are folded into one line.

    Arguments:
        path: where it is in the model.
        part: the class of the part that holds it.
        axes: its axis words with their sizes.
        numbers: how many are in it; of all of them, where several are folded.
        bytes: of all its numbers, wherever they lie.
        held: of those on one device.
        dtype: the type of the numbers.
        sharding: the axes of the mesh that cut each of its axes, `-` for none.
        trained: `trained` or `frozen`.
    """

    path: str
    part: str
    axes: str
    numbers: int
    bytes: int
    held: int
    dtype: str
    sharding: str
    trained: str


class Fold(NamedTuple):
    """Neighbouring blocks of which every row says the same, as one: `blocks.0..5`, 6 `Block`s."""

    path: str
    part: str
    times: int
    rows: tuple[Row, ...]


def single(model: Any) -> Any:
    """The shapes of a model with every block by itself, however its stacks store them."""
    return unrolled(eqx.filter_eval_shape(lambda: model))


def rows(model: Any, shapes: Any, trains: Trains | None = None) -> list[Row]:
    """A row for every array of a model, in the order of its fields; `shapes` are of `single`."""
    axes, more, found = leaf_axes(shapes), _leaves(model, trains), []
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        if not is_array(leaf):
            continue
        words = axes.get(name(path), ())
        if len(words) != leaf.ndim:  # not annotated, or for any number of axes
            words = ("?",) * leaf.ndim
        spelled = " ".join(f"{w}={n}" for w, n in zip(words, leaf.shape, strict=True))
        bytes_ = math.prod(leaf.shape) * leaf.dtype.itemsize
        whole, layers, trained = more[name(path)]
        found.append(
            Row(
                path=name(path),
                part=part_at(shapes, name(path).split(".")[:-1]),
                axes=spelled,
                numbers=math.prod(leaf.shape),
                bytes=bytes_,
                held=_held(whole, layers, bytes_),
                dtype=str(leaf.dtype),
                sharding=_cuts(whole, whole.ndim - leaf.ndim),
                trained="trained" if trained else "frozen",
            )
        )
    return found


def part_at(model: Any, names: Sequence[str]) -> str:
    """The class of the innermost part on a path; `6 x Block` for a tuple of six of them."""
    node, part = model, type(model).__name__
    for each in names:
        node = _within(node, each)
        if isinstance(node, tuple | list) and node:
            kinds = dict.fromkeys(type(item).__name__ for item in node)
            part = f"{len(node)} x {' or '.join(kinds)}"
        elif isinstance(node, eqx.Module):
            part = type(node).__name__
    return part


def _within(node: Any, name: str) -> Any:
    """The field, item or entry of a dict that has this name in a path."""
    if isinstance(node, dict):
        return next(value for key, value in node.items() if str(key) == name)
    return node[int(name)] if isinstance(node, tuple | list) else getattr(node, name)


def to_depth(found: list[Row], shapes: Any, depth: int | None) -> list[Row]:
    """Rows with everything below so many names of a path folded into one."""
    if depth is None:
        return found

    def front(row: Row) -> tuple[str, ...]:
        return tuple(row.path.split(".")[:depth])

    out = []
    for names, group in itertools.groupby(found, key=front):
        several = list(group)
        if len(several) == 1 and ".".join(names) == several[0].path:
            out += several
        else:
            out.append(_sum(several, ".".join(names), part_at(shapes, names)))
    return out


def folded(found: list[Row], shapes: Any) -> Iterator[Row | Fold]:
    """Rows outside of stacks one by one, and neighbouring blocks with equal rows as one."""
    for (stack, _), group in itertools.groupby(found, key=lambda row: block_of(row.path)[::2]):
        members = list(group)
        if not stack:
            yield from members
            continue
        numbered = itertools.groupby(members, key=lambda row: block_of(row.path)[1])
        for _, run in itertools.groupby(((i, list(g)) for i, g in numbered), key=_relative):
            blocks = list(run)
            first, last = blocks[0][0], blocks[-1][0]
            label = f"{stack}.{first}" if first == last else f"{stack}.{first}..{last}"
            path = f"{stack}.{first}"
            yield Fold(
                label,
                part_at(shapes, path.split(".")),
                len(blocks),
                tuple(_below(row, path, len(blocks)) for row in blocks[0][1]),
            )


def block_of(path: str) -> tuple[str, str, bool]:
    """`decoder.blocks.3.attention...` as its stack and number; empty for what is in no stack."""
    head, found, rest = path.partition("blocks.")
    return (f"{head}blocks", rest.partition(".")[0], True) if found else ("", "", False)


def _below(row: Row, path: str, times: int) -> Row:
    """A row by its path below that of its block, with the numbers of so many blocks."""
    return row._replace(
        path=row.path.removeprefix(path).removeprefix("."),
        numbers=row.numbers * times,
        bytes=row.bytes * times,
        held=row.held * times,
    )


def _sum(several: list[Row], path: str, part: str) -> Row:
    def joined(values: list[str]) -> str:
        kinds = dict.fromkeys(values)
        return ", ".join(kinds) if len(kinds) < 3 else "several"

    return Row(
        path=path,
        part=part,
        axes="",
        numbers=sum(row.numbers for row in several),
        bytes=sum(row.bytes for row in several),
        held=sum(row.held for row in several),
        dtype=joined([row.dtype for row in several]),
        sharding=joined([row.sharding for row in several]),
        trained=joined([row.trained for row in several]),
    )


def _relative(block: tuple[str, list[Row]]) -> list[tuple[Any, ...]]:
    """What a block's rows say without its number."""
    number, several = block
    return [(row.path.partition(f"blocks.{number}")[2], *row[1:]) for row in several]


def _leaves(model: Any, trains: Trains | None) -> dict[str, tuple[Any, int, bool]]:
    """By name: the array as it is stored, of how many layers it is, and whether it is trained."""
    mask = jax.tree.map(_learns, model) if trains is None else trains.mask(model)
    found: dict[str, tuple[Any, int, bool]] = {}

    def add(leaf: Any, names: tuple[str, ...] | None, trained: bool | None) -> None:
        found.update({each: (leaf, len(names), bool(trained)) for each in names} if names else {})

    jax.tree.map(add, model, every_name(model), mask, is_leaf=lambda node: node is None)
    return found


def _learns(leaf: Any) -> bool:
    return is_array(leaf) and jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact)


def _sharding(leaf: Any) -> Any:
    """The sharding over a mesh of several devices; None for what lies on one, or is traced."""
    found = None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None)
    several = isinstance(found, jax.sharding.NamedSharding) and found.mesh.size > 1
    return found if several else None


def _held(leaf: Any, layers: int, bytes_: int) -> int:
    """Bytes of one layer of an array on each device."""
    where = _sharding(leaf)
    if where is None:
        return bytes_
    return math.prod(where.shard_shape(tuple(leaf.shape))) * leaf.dtype.itemsize // layers


def _cuts(leaf: Any, front: int) -> str:
    """The axes of a mesh that cut each axis behind those in front: `fsdp -`."""
    where = _sharding(leaf)
    if where is None:
        return ""
    cuts = [*where.spec, *(None,) * (leaf.ndim - len(where.spec))][front:]
    spelled = ["+".join(cut) if isinstance(cut, tuple) else cut or "-" for cut in cuts]
    return " ".join(spelled) if any(cuts) else "whole"
