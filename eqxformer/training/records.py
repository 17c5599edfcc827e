"""Where the numbers of a run go: a file of JSON lines, and a plot of the losses."""

import collections
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqxformer.training.callbacks import Callback, Record

if TYPE_CHECKING:
    from eqxformer.training.trainer import Trainer


class MetricsFile(Callback):
    """Writes each record as one line of JSON; what is not finite becomes null.

    When training goes on from a checkpoint, the file is cut back to the lines that there were when
    the checkpoint was made: no step is missing in it, and none stands there twice.
    """

    everywhere = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lines = 0

    def started(self, trainer: "Trainer") -> None:
        kept = read_lines(self.path)[: self._lines] if trainer.step else []
        self._lines = len(kept)
        temporary = self.path.with_name(f".{self.path.name}.part")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)  # whole lines at once

    def recorded(self, record: Record) -> None:
        values = {k: v if math.isfinite(v) else None for k, v in record.values.items()}
        line = {"step": record.step, "tokens": record.tokens, "seconds": round(record.seconds, 3)}
        self._file.write(json.dumps({**line, **values}) + "\n")
        self._lines += 1

    def closed(self) -> None:
        self._file.close()

    def memory(self) -> dict[str, Any]:
        os.fsync(self._file.fileno())  # a checkpoint must not outlive the lines that it counts
        return {"lines": self._lines}

    def recall(self, memory: dict[str, Any]) -> None:
        self._lines = memory.get("lines", 0)


class LossPlot(Callback):
    """Draws training and validation loss over the steps into a PNG, at the end.

    `history` is the file of a `MetricsFile`: where training goes on from a checkpoint, the losses
    before it are read there.
    """

    everywhere = False

    def __init__(
        self, path: str | os.PathLike[str], *, history: str | os.PathLike[str] | None = None
    ) -> None:
        self.path, self.history = Path(path), None if history is None else Path(history)
        self.curves: dict[str, list[tuple[int, float]]] = collections.defaultdict(list)

    def started(self, trainer: "Trainer") -> None:
        self.curves.clear()
        if self.history is not None and trainer.step:
            for line in map(json.loads, read_lines(self.history)):
                if line["step"] <= trainer.step:
                    self._add(line["step"], line)

    def recorded(self, record: Record) -> None:
        self._add(record.step, record.values)

    def closed(self) -> None:
        if self.curves:
            draw_losses(self.curves, self.path)

    def _add(self, step: int, values: dict[str, Any]) -> None:
        for name in ("loss", "validation_loss"):
            value = values.get(name)
            if value is not None and math.isfinite(value):
                self.curves[name].append((step, value))


def read_lines(path: Path) -> list[str]:
    """The whole lines of a file; none where it is not there. One without an end was never whole."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return text.split("\n")[:-1]


def draw_losses(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Draws curves of (step, nats per token) by name into a PNG."""
    from matplotlib.figure import Figure  # not pyplot: it would pick a backend for the process

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
    for name, points in curves.items():
        steps, values = zip(*points, strict=True)
        if name == "loss":
            axes.plot(steps, values, color="C0", alpha=0.25, linewidth=0.8)
            axes.plot(steps, _smooth(values), color="C0", label="training")
        else:
            label = name.replace("_loss", "")
            axes.plot(steps, values, color="C1", marker=".", label=label)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _smooth(values: tuple[float, ...], keep: float = 0.95) -> list[float]:
    """Exponential running mean, without the pull of its start towards 0."""
    mean = weight = 0.0
    smooth = []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append(mean / weight)
    return smooth
