"""What the pictures have in common: figures without a display, panels, labels of tokens."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Light to dark in one colour, so that a print in grey says the same.
SHADES = "Blues"
FROM_ZERO = "RdBu_r"  # both signs, white at zero
LINE = "#1f5fa8"
LABELS = 40  # tokens that are all named; of more, every n-th
_LONGEST = 12  # characters of a token that are shown
_SHOWN = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "Ġ": "␣", "Ċ": "⏎", "▁": "␣", "$": r"\$"})


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of a size in inches; raises `ImportError` where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # not pyplot: it would pick a backend for the process
    except ImportError:
        raise ImportError(
            "Pictures need matplotlib; run: pip install 'eqxformer[pictures]'"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def grid(count: int, size: tuple[float, float], most: int = 4) -> tuple["Figure", list[Any]]:
    """A figure of so many panels of a size in inches, at most `most` side by side."""
    columns = min(count, most)
    rows = math.ceil(count / columns)
    figure = new_figure(columns * size[0] + 0.6, rows * size[1] + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for empty in panels[count:]:
        empty.set_axis_off()
    return figure, panels[:count]


def panel_size(
    seq: int, keys: int, tokens: Sequence[str] | None, across: Sequence[str] | None, each: float
) -> tuple[float, float]:
    """Inches, across and down, of a panel whose places are `each` large, with room for labels."""
    room = [
        0.08 * max(map(len, map(spelled, words)), default=0) + 0.1
        for words in (tokens or "", across or "")
    ]
    width, height = (min(max(each * n, 1.3), 6.5) for n in (keys, seq))
    return width + room[0] + 0.25, height + room[1] + 0.4


def name_tokens(axes: Any, along: str, count: int, tokens: Sequence[str] | None) -> None:
    """Labels the places along an axis (`x` or `y`) by tokens, or by numbers where none are given.

    Of more than forty, every n-th is labelled, with its number beside the token.
    """
    step = max(1, math.ceil(count / LABELS)) if tokens is not None else max(1, count // 8)
    places = list(range(0, count, step))
    if tokens is None:
        labels = [str(place) for place in places]
    else:
        many = step > 1
        labels = [f"{spelled(tokens[i])} {i}" if many else spelled(tokens[i]) for i in places]
    if along == "y":
        axes.set_yticks(places, labels)
    else:
        upright = tokens is not None and max(map(len, labels), default=0) > 1
        axes.set_xticks(places, labels, rotation=90 if upright else 0)
    axes.tick_params(length=0, labelsize=7)


def spelled(token: str) -> str:
    """A token as a label: spaces and ends of lines visible, long ones cut."""
    shown = token if len(token) <= _LONGEST else token[: _LONGEST - 1] + "…"
    return "".join(c if c.isprintable() or c in "\n\t" else "·" for c in shown).translate(_SHOWN)


def check_tokens(name: str, tokens: Sequence[str] | None, count: int) -> None:
    """Raises `ValueError` for labels that are not as many as what they label."""
    if tokens is not None and len(tokens) != count:
        raise ValueError(f"`{name}` must be {count} labels, one for each place; got {len(tokens)}.")
