"""A plot of candidates side by side: bars of their times, with quartiles; needs matplotlib."""

import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

OURS, OTHERS, BASE = "#1f5fa8", "#b9c2cc", "#7c8794"


def bars(
    panels: Mapping[str, Mapping[str, Mapping[str, Any]]],
    path: pathlib.Path,
    base: str,
    ours: str = "eqxformer",
) -> pathlib.Path:
    """Draws a panel per question, a bar per candidate, as a multiple of `base`'s time.

    Arguments:
        panels: by title, what `harness.compare` found. A panel without `base` takes the first.
        path: of the picture; its ending says the format, such as `.svg` or `.png`.
        base: the candidate whose median is 1.
        ours: the candidate that is drawn in colour.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none"}):
        heights = [1.0 + 0.32 * len(found) for found in panels.values()]
        layout = ConstrainedLayoutEngine(hspace=0.06)
        figure = Figure(figsize=(7.0, sum(heights)), layout=layout)  # without pyplot: no display
        rows = figure.subplots(len(panels), height_ratios=heights, squeeze=False)
        for axes, (title, found) in zip(rows[:, 0], panels.items(), strict=True):
            _panel(axes, title, found, base if base in found else next(iter(found)), ours)
        figure.savefig(path, dpi=150)
    return path


def check() -> None:
    """Raises `SystemExit` where nothing can be drawn; better asked before measuring than after."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SystemExit("To draw, install matplotlib: pip install 'eqxformer[bench]'.")


def _panel(axes: Any, title: str, found: Mapping[str, Any], base: str, ours: str) -> None:
    """One question: horizontal bars, the fastest on top."""
    names = sorted(found, key=lambda name: found[name]["median"], reverse=True)
    unit = found[base]["median"]
    times = [found[name]["median"] / unit for name in names]
    low, high = ([found[name]["quartiles"][end] / unit for name in names] for end in (0, 1))
    spread = [
        [time - below for time, below in zip(times, low, strict=True)],
        [above - time for time, above in zip(times, high, strict=True)],
    ]
    colours = [OURS if name == ours else BASE if name == base else OTHERS for name in names]
    axes.barh(names, times, xerr=spread, color=colours, height=0.68, ecolor="#30363d", capsize=2.5)
    for row, (name, time, end) in enumerate(zip(names, times, high, strict=True)):
        label = f"{time:.2f}   {duration(found[name]['median'])}"
        axes.text(max(time, end) + 0.02 * max(high), row, label, va="center")
    axes.axvline(1.0, color="#30363d", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 1.28 * max(high))
    axes.set_title(title, loc="left", fontsize=9.5, fontweight="bold")
    axes.set_xlabel(f"time, {base} = 1; lines from the first to the third quartile")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def duration(seconds: float) -> str:
    """Seconds for people: `31.2 ms`, `4.61 s`."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
