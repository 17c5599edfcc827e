"""What a block diagram is made of: boxes that stack upwards, residual lines, groups of blocks.

Every piece knows its size and draws itself round a middle line, from its bottom up; what flows
through it enters at the bottom and leaves at the top, as in the figure of Vaswani et al. 2017.
"""

import abc
import dataclasses
from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH, GAP, MARGIN = 190.0, 16.0, 26.0
_TITLE, _LINE = 12.0, 9.5  # sizes of letters
_INK = "#1f2328"
FILLS = {
    "attention": "#f7d9b8",
    "feed_forward": "#cfe3f5",
    "norm": "#f6efc0",
    "embedding": "#f5d3d8",
    "head": "#dcd3ec",
    "other": "#e4e8ec",
}


class Canvas:
    """Elements of an SVG in the order in which they are drawn, on axes whose y grows upwards.

    `looks` are the places at which boxes of cross-attention wait for their source.
    """

    def __init__(self, height: float):
        self.height = height
        self.elements: list[str] = []
        self.looks: list[tuple[float, float]] = []

    def box(self, x: float, y: float, width: float, height: float, fill: str, **more: str) -> None:
        """A rectangle with round corners, `y` being its lower edge."""
        options = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
        self.elements.append(
            f'<rect x="{x:.1f}" y="{self.height - y - height:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" rx="5" fill="{fill}" stroke="{_INK}"{options}/>'
        )

    def text(self, x: float, y: float, words: str, size: float, *, anchor: str = "middle") -> None:
        """A line of text, `y` being its baseline."""
        weight = ' font-weight="bold"' if size == _TITLE else ""
        self.elements.append(
            f'<text x="{x:.1f}" y="{self.height - y:.1f}" font-size="{size}" '
            f'text-anchor="{anchor}"{weight} fill="{_INK}">{escape(words)}</text>'
        )

    def line(self, points: Sequence[tuple[float, float]], *, arrow: bool = False) -> None:
        """A line through some points, with the head of an arrow at its end."""
        path = " ".join(f"{x:.1f},{self.height - y:.1f}" for x, y in points)
        head = ' marker-end="url(#arrow)"' if arrow else ""
        self.elements.append(f'<polyline points="{path}" fill="none" stroke="{_INK}"{head}/>')

    def plus(self, x: float, y: float) -> None:
        """A circle with a plus, round its middle."""
        at = self.height - y
        self.elements.append(
            f'<circle cx="{x:.1f}" cy="{at:.1f}" r="7" fill="#ffffff" stroke="{_INK}"/>'
        )
        self.line([(x - 4, y), (x + 4, y)])
        self.line([(x, y - 4), (x, y + 4)])


class Piece(abc.ABC):
    """Something with a height and a width, through which numbers flow upwards."""

    width: float
    height: float

    @abc.abstractmethod
    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        """Draws the piece round the middle line `x`, from `y` upwards."""


@dataclasses.dataclass
class Box(Piece):
    """A named part with lines on its settings; `looks` marks one that waits for a source."""

    title: str
    lines: tuple[str, ...]
    kind: str
    looks: bool = False
    width: float = WIDTH

    def __post_init__(self) -> None:
        self.height = 22.0 + 12.0 * len(self.lines)

    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        canvas.box(x - self.width / 2, y, self.width, self.height, FILLS[self.kind])
        top = y + self.height
        canvas.text(x, top - 15, self.title, _TITLE)
        for number, line in enumerate(self.lines):
            canvas.text(x, top - 28 - 12 * number, line, _LINE)
        if self.looks:
            canvas.looks.append((x - self.width / 2, y + self.height / 2))


@dataclasses.dataclass
class Column(Piece):
    """Pieces one above the other, joined by arrows."""

    pieces: Sequence[Piece]

    def __post_init__(self) -> None:
        self.width = max(piece.width for piece in self.pieces)
        self.height = sum(piece.height for piece in self.pieces) + GAP * (len(self.pieces) - 1)

    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        for number, piece in enumerate(self.pieces):
            piece.draw(canvas, x, y)
            y += piece.height
            if number < len(self.pieces) - 1:
                canvas.line([(x, y), (x, y + GAP)], arrow=isinstance(self.pieces[number + 1], Box))
                y += GAP


@dataclasses.dataclass
class Residual(Piece):
    """A branch, and a line round it that is added to what comes out of it."""

    branch: Piece

    def __post_init__(self) -> None:
        self.width = self.branch.width + 2 * 18.0
        self.height = self.branch.height + 2 * GAP + 14.0

    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        top = y + GAP + self.branch.height + GAP
        canvas.line([(x, y), (x, y + GAP)], arrow=True)
        self.branch.draw(canvas, x, y + GAP)
        canvas.line([(x, top - GAP), (x, top)], arrow=True)
        aside = x + self.width / 2 - 6
        around = [(x, y + 4), (aside, y + 4), (aside, top + 7), (x + 8, top + 7)]
        canvas.line(around, arrow=True)
        canvas.plus(x, top + 7)


@dataclasses.dataclass
class Beside(Piece):
    """Branches side by side, whose results are added to what went into them."""

    branches: Sequence[Piece]

    def __post_init__(self) -> None:
        self.width = sum(branch.width for branch in self.branches) + 14.0 * len(self.branches) + 30
        self.height = max(branch.height for branch in self.branches) + 2 * GAP + 22.0

    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        low, top = y + GAP, y + self.height - 7
        left = x - self.width / 2 + 7
        for branch in self.branches:
            middle = left + branch.width / 2
            canvas.line([(x, y + 4), (middle, y + 4), (middle, low)], arrow=True)
            branch.draw(canvas, middle, low)
            end = low + branch.height
            canvas.line(
                [(middle, end), (middle, top - 14), (x, top - 14), (x, top - 7)], arrow=True
            )
            left += branch.width + 14
        aside = x + self.width / 2 - 12
        canvas.line([(x, y), (x, y + 4), (aside, y + 4), (aside, top), (x + 8, top)], arrow=True)
        canvas.plus(x, top)


@dataclasses.dataclass
class Group(Piece):
    """A frame round what is repeated, with how often beside it."""

    inside: Piece
    label: str

    def __post_init__(self) -> None:
        self.width = self.inside.width + 2 * 12.0
        self.height = self.inside.height + 2 * 12.0 + 14.0

    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        frame = {"stroke_dasharray": "4 3"}
        canvas.box(x - self.width / 2, y, self.width, self.height, "none", **frame)
        canvas.line([(x, y), (x, y + 12)])
        self.inside.draw(canvas, x, y + 12)
        end = y + 12 + self.inside.height
        canvas.line([(x, end), (x, y + self.height)])
        canvas.text(x - self.width / 2 + 8, y + self.height - 13, self.label, 11.0, anchor="start")
