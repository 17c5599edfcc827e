"""What happens besides the steps: validation, samples, saving, numbers to a file, a plot."""

import collections
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx

from eqxformer.losses.tokens import Loss, LossFunction, NextToken

if TYPE_CHECKING:
    from eqxformer.training.trainer import Trainer


class Record(NamedTuple):
    """Numbers measured at a step.

    `step` counts from 1, `tokens` are those read up to it, `seconds` are since training began.
    """

    step: int
    tokens: int
    seconds: float
    values: dict[str, float]


class Callback:
    """Something that happens besides the steps of a `Trainer`; a subclass says what.

    With `every` set, `reached` is called at each multiple of it, when the numbers of all steps
    until then are known to be finite. Whatever it does with `trainer.state` must be over when it
    returns: the next step reuses that memory.
    """

    every: int | None = None

    def started(self, trainer: "Trainer") -> None:
        """Before the first step."""

    def recorded(self, record: Record) -> None:
        """When numbers are known: each step's own, and what callbacks publish."""

    def reached(self, trainer: "Trainer") -> None:
        """After every `every`-th step."""

    def finished(self, trainer: "Trainer") -> None:
        """After the last step, also where Ctrl-C made it the last; not when training broke down."""

    def closed(self) -> None:
        """At the very end, whatever happened."""


class Validate(Callback):
    """Publishes `validation_loss`: the mean per token over some batches, without dropout."""

    def __init__(
        self, batches: Iterable[Any], *, every: int, loss: LossFunction | None = None
    ) -> None:
        self.batches, self.every = list(batches), every
        self._measure = evaluator(NextToken() if loss is None else loss)

    def reached(self, trainer: "Trainer") -> None:
        loss = self._measure(trainer.state.model, self.batches)
        trainer.publish({"validation_loss": float(loss.mean)})


def evaluator(loss: LossFunction) -> Callable[[Any, Iterable[Any]], Loss]:
    """A function from a model and batches to their `Loss` together, weighted by token."""

    @eqx.filter_jit
    def measure(model: Any, batch: Any) -> Loss:
        value = loss(model, batch, key=None)
        if not isinstance(value, Loss):
            raise TypeError(
                "A loss to validate with must be a `Loss`, which keeps sum and weight apart; "
                "got a scalar. Use `NextToken()` or `SequenceToSequence()`."
            )
        return value

    def evaluate(model: Any, batches: Iterable[Any]) -> Loss:
        return sum((measure(model, batch) for batch in batches), Loss.zero())

    return evaluate


class ShowSamples(Callback):
    """Shows what `draw(model, step)` makes of the model as text."""

    def __init__(
        self, draw: Callable[[Any, int], str], show: Callable[[str], Any], *, every: int
    ) -> None:
        self.draw, self.show, self.every = draw, show, every

    def reached(self, trainer: "Trainer") -> None:
        self.show(self.draw(trainer.state.model, trainer.step))


class Evaluate(Callback):
    """Publishes what `measure(model)` finds at the end, unless Ctrl-C made it the end.

    `values` keeps it.
    """

    def __init__(self, measure: Callable[[Any], dict[str, float]]) -> None:
        self.measure = measure
        self.values: dict[str, float] = {}

    def finished(self, trainer: "Trainer") -> None:
        if not trainer.interrupted:
            self.values = self.measure(trainer.state.model)
            trainer.publish(self.values)


class Save(Callback):
    """Gives the model to `save` at intervals and at the end, also at the one by Ctrl-C.

    `step` is the step of the model that was saved last, 0 before there is one.
    """

    def __init__(self, save: Callable[[Any], Any], *, every: int | None = None) -> None:
        self.save, self.every, self.step = save, every, 0

    def reached(self, trainer: "Trainer") -> None:
        if self.step != trainer.step:
            self.save(trainer.state.model)
            self.step = trainer.step

    def finished(self, trainer: "Trainer") -> None:
        self.reached(trainer)


class MetricsFile(Callback):
    """Writes each record as one line of JSON; what is not finite becomes null."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def started(self, trainer: "Trainer") -> None:
        self._file = self.path.open("w", encoding="utf-8", buffering=1)  # whole lines at once

    def recorded(self, record: Record) -> None:
        values = {k: v if math.isfinite(v) else None for k, v in record.values.items()}
        line = {"step": record.step, "tokens": record.tokens, "seconds": round(record.seconds, 3)}
        self._file.write(json.dumps({**line, **values}) + "\n")

    def closed(self) -> None:
        self._file.close()


class LossPlot(Callback):
    """Draws training and validation loss over the steps into a PNG, at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.curves: dict[str, list[tuple[int, float]]] = collections.defaultdict(list)

    def recorded(self, record: Record) -> None:
        for name in ("loss", "validation_loss"):
            if math.isfinite(record.values.get(name, math.nan)):
                self.curves[name].append((record.step, record.values[name]))

    def closed(self) -> None:
        if self.curves:
            draw_losses(self.curves, self.path)


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
