"""Drawings as SVG: boxes, arrows, grids and curves, in colours that follow the page's.

A drawing stands by itself with colours for light and dark, and takes those of the site where it is
put into a page of it.
"""

import html
from collections.abc import Sequence

import numpy as np

STYLE = (
    "<style>svg{--ink:#1f2328;--faint:#8c959f;--paper:#fff;--fill:#f3f4f6;--strong:#00796b;"
    "--other:#d9480f}@media (prefers-color-scheme:dark){svg{--ink:#e6edf3;--faint:#7d8590;"
    "--paper:#0d1117;--fill:#21262d;--strong:#26a69a;--other:#ff8a50}}</style>"
)
SANS = "font-family:system-ui,sans-serif"
MONO = "font-family:ui-monospace,monospace"


class Drawing:
    """Shapes on a sheet of `width` by `height`; `title` is read out to those who cannot see it."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, label: str = "", kind: str = "fill"
    ) -> None:
        """A rectangle with a label in it, of a kind of colour: `fill`, `strong`, `other`."""
        edge = "faint" if kind == "fill" else kind
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" '
            f'style="fill:var(--fill);stroke:var(--{edge});stroke-width:1.4"/>'
        )
        if label:
            self.text(x + width / 2, y + height / 2, label)

    def text(
        self,
        x: float,
        y: float,
        label: str,
        *,
        size: float = 13,
        anchor: str = "middle",
        colour: str = "ink",
        mono: bool = False,
    ) -> None:
        """A line of text, centred on the height `y`."""
        style = f"{MONO if mono else SANS};font-size:{size:g}px;fill:var(--{colour})"
        self.parts.append(
            f'<text x="{x:g}" y="{y + 0.35 * size:g}" text-anchor="{anchor}" style="{style}">'
            f"{html.escape(label)}</text>"
        )

    def arrow(self, *points: tuple[float, float], colour: str = "ink", head: bool = True) -> None:
        """A line through points, with a head at its end."""
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        style = f"fill:none;stroke:var(--{colour});stroke-width:1.4"
        self.parts.append(f'<path d="{path}" style="{style}"/>')
        if head:
            (x0, y0), (x1, y1) = points[-2:]
            length = float(np.hypot(x1 - x0, y1 - y0)) or 1.0
            dx, dy = (x1 - x0) / length, (y1 - y0) / length
            back, side = (x1 - 7 * dx, y1 - 7 * dy), (3.5 * dy, 3.5 * dx)
            corners = f"L{back[0] - side[0]:.1f} {back[1] + side[1]:.1f} "
            corners += f"L{back[0] + side[0]:.1f} {back[1] - side[1]:.1f}"
            self.parts.append(
                f'<path d="M{x1:.1f} {y1:.1f} {corners} Z" style="fill:var(--{colour})"/>'
            )

    def circle(self, x: float, y: float, radius: float, label: str) -> None:
        """A small circle with a sign in it, such as a plus."""
        style = "fill:var(--paper);stroke:var(--ink);stroke-width:1.4"
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" style="{style}"/>')
        self.text(x, y, label, size=1.5 * radius)

    def grid(
        self,
        x: float,
        y: float,
        values: np.ndarray,
        *,
        cell: float = 16,
        tall: float | None = None,
        rows: Sequence[str] = (),
        columns: Sequence[str] = (),
    ) -> None:
        """Squares whose strength is a number from 0 to 1; negative ones are of the other colour."""
        tall = cell if tall is None else tall
        height, width = values.shape
        gap = 1.0 if cell > 8 else 0.0
        sheet = f'x="{x:g}" y="{y:g}" width="{width * cell:g}" height="{height * tall:g}"'
        self.parts.append(f'<rect {sheet} style="fill:var(--fill)"/>')
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                if abs(value) >= 0.02:
                    colour = "strong" if value > 0 else "other"
                    self.parts.append(
                        f'<rect x="{x + column * cell:g}" y="{y + row * tall:g}" '
                        f'width="{cell - gap:g}" height="{tall - gap:g}" '
                        f'style="fill:var(--{colour});opacity:{abs(value):.2g}"/>'
                    )
        for row, label in enumerate(rows):
            self.text(x - 6, y + (row + 0.5) * tall, label, size=11, anchor="end", mono=True)
        for column, label in enumerate(columns):
            self.text(x + (column + 0.5) * cell, y - 9, label, size=11, mono=True)

    def curve(
        self, x: float, y: float, width: float, height: float, values: np.ndarray, colour: str
    ) -> None:
        """A line through numbers from 0 (bottom) to 1 (top), as wide as it is told."""
        steps = np.linspace(x, x + width, len(values))
        path = " L".join(
            f"{a:.1f} {y + height * (1 - b):.1f}" for a, b in zip(steps, values, strict=True)
        )
        style = f"fill:none;stroke:var(--{colour});stroke-width:1.6"
        self.parts.append(f'<path d="M{path}" style="{style}"/>')

    def svg(self) -> str:
        """The drawing as a file."""
        size = f'width="{self.width:g}" height="{self.height:g}"'
        sheet = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}"'
        title = f"<title>{html.escape(self.title)}</title>"
        return "\n".join(
            [f'<svg {sheet} {size} role="img">', title, STYLE, *self.parts, "</svg>", ""]
        )
