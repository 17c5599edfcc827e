"""The parameter table: every array of a model with its axes, shape and size."""

import itertools
import math

import equinox as eqx
import jax

from eqxformer.axes import leaf_axes
from eqxformer.checkpoints.names import is_array, name, unrolled


def table(model: eqx.Module, *, depth: int | None = None) -> str:
    """A line per array: path, axes with sizes, count, bytes; totals below.

    Equal neighbours of a stack are folded into one line (`blocks.0..5`). `depth` folds everything
    below so many names of a path.

    Example:
        >>> import eqxformer as ef, jax
        >>> print(ef.table(ef.MLP(8, hidden=16, key=jax.random.key(0))))
        up.weight    dim=8 hidden=16  128  512 B
        up.bias      hidden=16         16  64 B
        down.weight  hidden=16 dim=8  128  512 B
        down.bias    dim=8              8  32 B
        total                         280  1.1 kB
    """
    rows = _rows(model)
    total = (sum(row[2] for row in rows), sum(row[3] for row in rows))
    shown = _folded(_to_depth(rows, depth))
    lines = [(path, axes, f"{count:,}", size(bytes_)) for path, axes, count, bytes_ in shown]
    lines.append(("total", "", f"{total[0]:,}", size(total[1])))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    return "\n".join(
        f"{path:<{widths[0]}}  {axes:<{widths[1]}}  {number:>{widths[2]}}  {space}"
        for path, axes, number, space in lines
    )


def count(model: eqx.Module) -> int:
    """The number of numbers in a model's arrays, or in their shapes.

    Example:
        >>> import eqxformer as ef, jax
        >>> ef.count(ef.Attention(3, heads=2, head_dim=2, key=jax.random.key(0)))
        63
    """
    arrays = (leaf for leaf in jax.tree.leaves(model) if is_array(leaf))
    return sum(math.prod(leaf.shape) for leaf in arrays)


def size(bytes_: int) -> str:
    """A number of bytes for people: `512 B`, `1.1 kB`, `498.0 MB`."""
    value = float(bytes_)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


Row = tuple[str, str, int, int]


def _rows(model: eqx.Module) -> list[Row]:
    single = unrolled(eqx.filter_eval_shape(lambda: model))
    axes, rows = leaf_axes(single), []
    for path, leaf in jax.tree_util.tree_leaves_with_path(single):
        if is_array(leaf):
            words = axes.get(name(path), ())
            if len(words) != leaf.ndim:  # not annotated, or for any number of axes
                words = ("?",) * leaf.ndim
            spelled = " ".join(f"{w}={n}" for w, n in zip(words, leaf.shape, strict=True))
            number = math.prod(leaf.shape)
            rows.append((name(path), spelled, number, number * leaf.dtype.itemsize))
    return rows


def _to_depth(rows: list[Row], depth: int | None) -> list[Row]:
    if depth is None:
        return rows
    grouped = itertools.groupby(rows, key=lambda row: ".".join(row[0].split(".")[:depth]))
    folded = ((path, list(group)) for path, group in grouped)
    return [(path, "", sum(r[2] for r in g), sum(r[3] for r in g)) for path, g in folded]


def _folded(rows: list[Row]) -> list[Row]:
    """Neighbouring blocks with equal rows shown once, as `blocks.0..5`, with the sums of all."""
    out: list[Row] = []
    for (stack, _), group in itertools.groupby(rows, key=lambda row: _block(row[0])[::2]):
        members = list(group)
        if not stack:
            out += members
            continue
        numbered = itertools.groupby(members, key=lambda row: _block(row[0])[1])
        for _, run in itertools.groupby(((i, list(g)) for i, g in numbered), key=_relative):
            blocks = list(run)
            first, last, times = blocks[0][0], blocks[-1][0], len(blocks)
            label = first if first == last else f"{first}..{last}"
            old, new = f"{stack}.{first}", f"{stack}.{label}"
            out += [
                (p.replace(old, new, 1), axes, n * times, b * times)
                for p, axes, n, b in blocks[0][1]
            ]
    return out


def _relative(block: tuple[str, list[Row]]) -> list[tuple[str, str, int]]:
    """What a block's rows say without its number."""
    number, rows = block
    return [(path.partition(f"blocks.{number}")[2], axes, n) for path, axes, n, _ in rows]


def _block(path: str) -> tuple[str, str, bool]:
    """`decoder.blocks.3.attention...` as its stack and number; empty for what is in no stack."""
    head, found, rest = path.partition("blocks.")
    return (f"{head}blocks", rest.partition(".")[0], True) if found else ("", "", False)
