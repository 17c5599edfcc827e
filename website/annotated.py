"""Writes what the annotated transformer prints into its page, and draws what it has learned.

    python -m website.annotated

Half a minute: the page trains a model. Its drawings are of that model.
"""

import pathlib
from typing import Any

import numpy as np

from website import drawings, pages
from website.svg import Drawing

PAGE = drawings.FOLDER.parent / "annotated.md"


def loss(names: dict[str, Any]) -> Drawing:
    """The loss of every step of training, on a logarithmic scale."""
    values = np.asarray(names["losses"], np.float64)
    d = Drawing(640, 240, "The loss falls from 4 to a few thousandths")
    d.arrow((60, 20), (60, 200), colour="faint", head=False)
    d.arrow((60, 200), (600, 200), colour="faint", head=False)
    top, bottom = 1.0, -3.0
    for power in (1, 0, -1, -2, -3):
        y = 20 + 180 * (top - power) / (top - bottom)
        d.text(54, y, f"{10.0**power:g}", size=11, anchor="end", mono=True)
        d.arrow((57, y), (60, y), colour="faint", head=False)
    d.curve(60, 20, 540, 180, (np.log10(values) - bottom) / (top - bottom), "strong")
    for share in (0.0, 0.5, 1.0):
        step = round(share * len(values))
        d.text(60 + 540 * share, 212, str(step), size=11, mono=True)
    d.text(330, 228, "step", size=11, colour="faint")
    return d


def attention(names: dict[str, Any]) -> Drawing:
    """The weights of the heads of cross-attention for one word."""
    maps, word = np.asarray(names["maps"])[0], names["word"]
    rows, columns = list(names["read"](names["target"][0, 1:])), list(word)
    cell, width = 17, 17 * len(word)
    d = Drawing(4 * (width + 34) + 20, width + 70, "What each head looks at for every letter")
    for number, weights in enumerate(maps):
        x = 30 + number * (width + 34)
        d.text(x + width / 2, 14, f"head {number}", size=12)
        shown = weights[: len(word), : len(word)]
        d.grid(x, 44, shown, cell=cell, rows=rows, columns=columns)
    return d


def main() -> None:
    """Runs the page once for all three."""
    names: dict[str, Any] = {"__name__": "__page__"}
    text = pages.written(PAGE, names)
    PAGE.write_text(text, encoding="utf-8")
    for name, draw in (("rot13-loss", loss), ("rot13-attention", attention)):
        pathlib.Path(drawings.FOLDER, f"{name}.svg").write_text(draw(names).svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
