"""How the tour is told: each stop's code is run as it is printed, as in a Python prompt.

All stops share one namespace, so that a reader who types along gets the same.
"""

import ast
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np

from eqxformer.tour.stops import BEGIN, SIZES, STOPS, Stop

_WIDTH = 88


def tour(write: Callable[[str], Any] = print, pause: Callable[[], Any] | None = None) -> None:
    """Walks through every component of a transformer, with the shapes that go in and come out.

    Arguments:
        write: takes the text, a stop at a time.
        pause: is called between stops, to wait for the reader.

    Example:
        >>> from eqxformer.tour import tour
        >>> tour(pause=input)  # doctest: +SKIP
    """
    names: dict[str, Any] = {}
    with np.printoptions():  # what the tour sets is put back at its end
        write(_introduction(names))
        for number, stop in enumerate(STOPS, 1):
            if pause is not None:
                pause()
            write(page(number, stop, names))
    write(f"{_rule()}\nThe end. `print(config)` and `ef.table(model)` show any model like this.")


def page(number: int, stop: Stop, names: dict[str, Any]) -> str:
    """The text of a stop, whose code is run in `names`."""
    prompt = run(stop.code, names)
    return "\n".join(
        [
            _rule(),
            f"{number:>2} of {len(STOPS)}   {stop.title}",
            _rule(),
            *textwrap.wrap(stop.says, _WIDTH),
            "",
            *(f"    {line}" for line in stop.formula.splitlines()),
            "",
            *prompt,
            "",
            *_shapes(stop, names),
            "",
        ]
    )


def run(code: str, names: dict[str, Any]) -> list[str]:
    """Runs code in `names`; the lines that a prompt would show, with what the code prints."""
    shown: list[str] = []

    def show(*values: Any) -> None:
        shown.extend(f"  {line}" for line in " ".join(map(str, values)).splitlines())

    names["print"], typed = show, code.splitlines()
    for statement in ast.parse(code).body:
        first, *rest = lines = typed[statement.lineno - 1 : statement.end_lineno]
        shown += [f"  >>> {first}", *(f"  ... {line}" for line in rest)]
        exec(compile("\n".join(lines), "<tour>", "exec"), names)
    return shown


def _introduction(names: dict[str, Any]) -> str:
    sizes = "   ".join(f"{axis} {size}" for axis, size in SIZES.items())
    return "\n".join(
        [
            f"A tour of eqxformer in {len(STOPS)} stops. The axes and their sizes, all different:",
            "",
            *(f"  {line}" for line in textwrap.wrap(sizes, _WIDTH - 2, break_long_words=False)),
            "",
            *run(BEGIN, names),
            "",
        ]
    )


def _shapes(stop: Stop, names: dict[str, Any]) -> list[str]:
    """A line per array with its name, type, and every axis with its size as it really is."""
    widest, lines = max(map(len, (*stop.takes, *stop.gives))), []
    for label, arrays in (("takes", stop.takes), ("gives", stop.gives)):
        for name, axes in arrays.items():
            array = eval(name, names)
            pairs = zip(axes.split(), array.shape, strict=True)
            spelled = " ".join(f"{axis}={size}" for axis, size in pairs) or "a single number"
            lines.append(f"  {label}  {name:<{widest}}  {array.dtype!s:<7}  {spelled}")
    return lines


def _rule() -> str:
    return "─" * _WIDTH
