"""The parameter table: every array of a model with its axes, shape, size and what sets it apart."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import equinox as eqx
import jax

from eqxformer.checkpoints.names import is_array
from eqxformer.inspect.rows import Fold, Row, Trains, folded, rows, single, to_depth

Column = Literal["part", "dtype", "sharding", "trained"]
_DIFFERING: tuple[Column, ...] = ("dtype", "sharding", "trained")


def table(
    model: eqx.Module,
    *,
    depth: int | None = None,
    columns: Sequence[Column] | None = None,
    trains: Trains | None = None,
    width: int = 100,
) -> str:
    """A line per array: path, part, axes with sizes, count, bytes; totals below.

    Equal neighbours of a stack are folded under one heading with their sum (`blocks.0..5`), whose
    lines are of all of them together; a path in full is the heading's and the line's. The type of
    the numbers, how a mesh cuts an array (`fsdp -`: the first axis by `fsdp`, the second not) and
    with `trains`, whether it is trained are shown where arrays differ in it, with the sums of each
    kind below; the class of the part is shown where lines stay within `width` columns.

    Arguments:
        model: any module, or its shapes, which may have shardings (`Placement.abstract`).
        depth: folds everything below so many names of a path.
        columns: the columns to show beside path, axes, count and bytes, whatever differs or fits.
        trains: which arrays are trained, such as `ef.Only(paths=("head",))`; if None, those of a
            floating type.
        width: columns of the terminal.

    Example:
        >>> import eqxformer as ef, jax
        >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
        >>> print(ef.table(mlp, trains=ef.Only(paths=("down",))))
        up.weight    dim=8 hidden=16  Linear  frozen   128  512 B
        up.bias            hidden=16  Linear  frozen    16  64 B
        down.weight  hidden=16 dim=8  Linear  trained  128  512 B
        down.bias              dim=8  Linear  trained    8  32 B
        total                                          280  1.1 kB
          frozen                                       144  576 B
          trained                                      136  544 B
    """
    shapes = single(model)
    every = rows(model, shapes, trains)
    shown = list(folded(to_depth(every, shapes, depth), shapes))
    if columns is not None:
        return _text(shown, every, list(columns))
    told = _DIFFERING if trains is not None else _DIFFERING[:2]
    differing: list[Column] = [c for c in told if len({getattr(row, c) for row in every}) > 1]
    text = _text(shown, every, ["part", *differing])
    if max(map(len, text.splitlines())) > width:
        return _text(shown, every, differing)
    return text


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


# A line of the table: path and axes, which share their room, the other words, count, bytes.
Line = tuple[str, str, list[str], int, int]


def _text(shown: list[Row | Fold], every: list[Row], columns: Sequence[Column]) -> str:
    """The table with these columns."""
    lines: list[Line] = []
    for each in shown:
        if isinstance(each, Row):
            lines.append(_line(each, each.path, columns))
        elif len(each.rows) == 1:
            row = each.rows[0]
            part = row.part if row.path or each.times == 1 else f"{each.times} x {row.part}"
            path = f"{each.path}.{row.path}".removesuffix(".")
            lines.append(_line(row._replace(part=part), path, columns))
        else:
            lines.append(_heading(each, columns))
            lines += [_line(row, f"  {row.path}", columns) for row in each.rows]
    return _aligned([*lines, *_totals(every, columns)])


def _line(row: Row, path: str, columns: Sequence[Column]) -> Line:
    return path, row.axes, [getattr(row, column) for column in columns], row.numbers, row.bytes


def _heading(fold: Fold, columns: Sequence[Column]) -> Line:
    part = fold.part if fold.times == 1 else f"{fold.times} x {fold.part}"
    words = [part if column == "part" else "" for column in columns]
    aside = "" if "part" in columns else part
    return fold.path, aside, words, *_sums(fold.rows)


def _totals(every: list[Row], columns: Sequence[Column]) -> list[Line]:
    """The sum of all arrays, of each kind where they differ, and of what one device holds."""
    nothing = [""] * len(columns)
    lines: list[Line] = [("total", "", nothing, *_sums(every))]
    for column in ("dtype", "trained"):
        kinds = dict.fromkeys(getattr(row, column) for row in every)
        for kind in kinds if len(kinds) > 1 and column in columns else ():
            of_kind = [row for row in every if getattr(row, column) == kind]
            lines.append((f"  {kind}", "", nothing, *_sums(of_kind)))
    if any(row.held != row.bytes for row in every):
        numbers = sum(row.numbers * row.held // max(row.bytes, 1) for row in every)
        lines.append(("  on each device", "", nothing, numbers, sum(row.held for row in every)))
    return lines


def _sums(several: Iterable[Row]) -> tuple[int, int]:
    several = list(several)
    return sum(row.numbers for row in several), sum(row.bytes for row in several)


def _aligned(lines: list[Line]) -> str:
    room = max(len(path) + len(axes) for path, axes, *_ in lines) + 2
    wide = [max(len(line[2][i]) for line in lines) for i in range(len(lines[0][2]))]
    numbers = max(len(f"{line[3]:,}") for line in lines)
    out = []
    for path, axes, words, count_, bytes_ in lines:
        spelled = "".join(f"  {word:<{w}}" for word, w in zip(words, wide, strict=True))
        out.append(
            f"{path}{axes:>{room - len(path)}}{spelled}  {count_:>{numbers},}  {size(bytes_)}"
        )
    return "\n".join(out)
