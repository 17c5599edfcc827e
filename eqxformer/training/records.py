"""Where the numbers of a run go: a file of JSON lines, and a plot of the losses."""

import collections
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqxformer.inspect.pictures import losses
from eqxformer.training.callbacks import Callback, Record

if TYPE_CHECKING:
    from eqxformer.training.trainer import Trainer


class MetricsFile(Callback):
    """Writes each record as one line of JSON; what is not finite becomes null.

    When training goes on from a checkpoint, the file is cut back to the lines that there were when
    the checkpoint was made: no step is missing in it, and none stands there twice.

    Arguments:
        path: the file.

    Example:
        >>> import eqxformer as ef, pathlib, tempfile, types
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = ef.MetricsFile(f"{folder}/metrics.jsonl")
        ...     file.started(types.SimpleNamespace(step=0))  # as a `Trainer` does
        ...     file.recorded(ef.Record(step=3, tokens=600, seconds=1.5, values={"loss": 2.25}))
        ...     file.closed()
        ...     print(pathlib.Path(folder, "metrics.jsonl").read_text())
        {"step": 3, "tokens": 600, "seconds": 1.5, "loss": 2.25}
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

    Arguments:
        path: the picture.
        history: the file of a `MetricsFile`, or None.

    Example:
        >>> import eqxformer as ef
        >>> plot = ef.LossPlot("run/loss.png", history="run/metrics.jsonl")
        >>> plot.recorded(ef.Record(step=3, tokens=600, seconds=1.5, values={"loss": 2.25}))
        >>> dict(plot.curves)
        {'loss': [(3, 2.25)]}
    """

    everywhere = False

    def __init__(
        self, path: str | os.PathLike[str], *, history: str | os.PathLike[str] | None = None
    ) -> None:
        self.path, self.history = Path(path), None if history is None else Path(history)
        self.curves: Curves = collections.defaultdict(list)

    def started(self, trainer: "Trainer") -> None:
        self.curves.clear()
        if self.history is not None and trainer.step:
            for line in map(json.loads, read_lines(self.history)):
                if line["step"] <= trainer.step:
                    _add(self.curves, line["step"], line)

    def recorded(self, record: Record) -> None:
        _add(self.curves, record.step, record.values)

    def closed(self) -> None:
        if self.curves:
            losses(self.curves).savefig(self.path, dpi=120)


Curves = dict[str, list[tuple[int, float]]]


def read_curves(path: Path) -> Curves:
    """The losses in the file of a `MetricsFile`, as `ef.inspect.pictures.losses` draws them."""
    curves: Curves = collections.defaultdict(list)
    for line in map(json.loads, read_lines(path)):
        _add(curves, line["step"], line)
    return dict(curves)


def _add(curves: Curves, step: int, values: dict[str, Any]) -> None:
    for name in ("loss", "validation_loss"):
        value = values.get(name)
        if value is not None and math.isfinite(value):
            curves[name].append((step, value))


def read_lines(path: Path) -> list[str]:
    """The whole lines of a file; none where it is not there. One without an end was never whole."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return text.split("\n")[:-1]
