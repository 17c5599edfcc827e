"""Progress on the terminal: a live bar where there is one, else a line now and then."""

import math
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from eqxformer.training.callbacks import Callback, Record

if TYPE_CHECKING:
    from eqxformer.training.trainer import Trainer

_LINES = 20  # lines in a run where no bar can be drawn
_SPAN = 10.0  # seconds that the speed is averaged over
_VALIDATED = "validation_"


class ProgressBar(Callback):
    """Shows step, loss, tokens per second and the time left, and each validation as a line."""

    everywhere = False

    def __init__(self, console: Console) -> None:
        self.console = console
        self._recent: deque[Record] = deque()
        self._smooth, self._weight = 0.0, 0.0

    def started(self, trainer: "Trainer") -> None:
        self._steps = trainer.steps
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            console=self.console,
            transient=True,
            refresh_per_second=4,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("compiling", total=self._steps)
        self._bar.start()
        if trainer.step:
            self._print(f"Going on from step {trainer.step:,}.")

    def recorded(self, record: Record) -> None:
        if "loss" in record.values:
            self._advance(record)
        if "validation_loss" in record.values:
            self._print(f"step {record.step:>6,}  {self._loss()}  {_validated(record)}")
        elif any(name.startswith(_VALIDATED) for name in record.values):
            self._print(f"step {record.step:>6,}  {_validated(record)}")

    def closed(self) -> None:
        self._bar.stop()

    def _advance(self, record: Record) -> None:
        if math.isfinite(record.values["loss"]):
            self._smooth = 0.9 * self._smooth + 0.1 * record.values["loss"]
            self._weight = 0.9 * self._weight + 0.1
        self._recent.append(record)
        while len(self._recent) > 2 and record.seconds - self._recent[0].seconds > _SPAN:
            self._recent.popleft()
        if self.console.is_terminal:
            self._bar.update(self._task, completed=record.step, description=self._state())
        elif record.step == 1 or record.step % max(self._steps // _LINES, 1) == 0:
            self._print(f"step {record.step:>6,} of {self._steps:,}  {self._state()}")

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _loss(self) -> str:
        return f"loss {self._smooth / self._weight:.3f}" if self._weight else "loss -"

    def _state(self) -> str:
        first, last = self._recent[0], self._recent[-1]
        seconds = last.seconds - first.seconds
        if seconds <= 0:
            return self._loss()
        speed = (last.tokens - first.tokens) / seconds
        left = (self._steps - last.step) * seconds / (last.step - first.step)
        clock = timedelta(seconds=round(left))
        return f"{self._loss()}  {speed:,.0f} tokens/s  {clock} left"


def _validated(record: Record) -> str:
    """What was measured on the validation data: `validation loss 1.2345, accuracy 0.6789`."""
    found = {
        name.removeprefix(_VALIDATED): value
        for name, value in record.values.items()
        if name.startswith(_VALIDATED)
    }
    return "validation " + ", ".join(f"{name} {value:.4f}" for name, value in found.items())
