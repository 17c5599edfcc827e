"""What follows one number of a run: keeping the best model, stopping early."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eqxformer.training.callbacks import Callback, Record

if TYPE_CHECKING:
    from eqxformer.training.trainer import Trainer


class _Follower(Callback):
    """Follows one number, and waits for that of each step where every step has it.

    It would be read some steps later otherwise: of weights that are gone by then, and by how many
    steps depends on where training was interrupted. So the first step is waited for, which shows
    whether it is such a number, and the others only where it is.
    """

    metric: str

    def started(self, trainer: "Trainer") -> None:
        self._trainer, self.every = trainer, 1
        self._heard: int | None = None  # the step of the number that was heard last

    def recorded(self, record: Record) -> None:
        if self.metric in record.values:
            self._heard = record.step
            self._hear(record.values[self.metric], record.step)

    def reached(self, trainer: "Trainer") -> None:
        if self._heard != trainer.step:
            self.every = None

    def _hear(self, found: float, step: int) -> None:
        raise NotImplementedError(f"{type(self).__name__} must say what becomes of its number.")


class SaveBest(_Follower):
    """Gives the model to `save` whenever a published number is better than ever before.

    Arguments:
        save: what keeps the model; one that is kept already is replaced.
        metric: the number, smaller being better; NaN is never better. One that every step has, such
            as `loss`, is waited for after each, since it is read some steps later otherwise.
        larger: whether larger is better instead.

    `best` is the number of the model that was saved last, `step` its step; at first both are None.

    Example:
        >>> import eqxformer as ef
        >>> best = ef.SaveBest(lambda model: ef.save(model, "run/best"), metric="bleu", larger=True)
        >>> best.metric, best.best, best.step
        ('bleu', None, None)
    """

    def __init__(
        self,
        save: Callable[[Any], Any],
        *,
        metric: str = "validation_loss",
        larger: bool = False,
    ) -> None:
        self.save, self.metric, self.larger = save, metric, larger
        self.best: float | None = None
        self.step: int | None = None

    def started(self, trainer: "Trainer") -> None:
        super().started(trainer)
        if trainer.step == 0:
            self.best = self.step = None

    def memory(self) -> dict[str, Any]:
        return {"best": self.best, "step": self.step}

    def recall(self, memory: dict[str, Any]) -> None:
        self.best, self.step = memory.get("best"), memory.get("step")

    def _hear(self, found: float, step: int) -> None:
        if is_better(found, self.best, larger=self.larger):
            done = self._trainer.outcome is not None  # and a number from now on is of that model
            self.save(self._trainer.outcome if done else self._trainer.state.averaged)
            self.best, self.step = found, step


class EarlyStopping(_Follower):
    """Stops training when a published number has not become better for so many times.

    Arguments:
        patience: how often it may fail to become better in a row.
        metric: the number, smaller being better. One that every step has, such as `loss`, is
            waited for after each, so that training stops at that step and not some steps later.
        larger: whether larger is better instead.
        least: by how much it must be better to count.

    Example:
        >>> import eqxformer as ef
        >>> stopping = ef.EarlyStopping(patience=3, metric="validation_loss", least=0.01)
        >>> stopping.memory()
        {'best': None, 'failures': 0}
    """

    def __init__(
        self,
        *,
        patience: int,
        metric: str = "validation_loss",
        larger: bool = False,
        least: float = 0.0,
    ) -> None:
        if patience < 1 or least < 0:
            raise ValueError(
                f"`patience` must be at least 1 and `least` not negative; got {patience}, {least}."
            )
        self.patience, self.metric, self.larger, self.least = patience, metric, larger, least
        self._best: float | None = None
        self._failures = 0

    def started(self, trainer: "Trainer") -> None:
        super().started(trainer)
        if trainer.step == 0:
            self._best, self._failures = None, 0
        elif self._failures >= self.patience and not trainer.stopped:
            self._failures = 0  # it stopped the run, which has been told to go on

    def memory(self) -> dict[str, Any]:
        return {"best": self._best, "failures": self._failures}

    def recall(self, memory: dict[str, Any]) -> None:
        self._best, self._failures = memory.get("best"), memory.get("failures", 0)

    def _hear(self, found: float, step: int) -> None:
        if is_better(found, self._best, larger=self.larger, least=self.least):
            self._best, self._failures = found, 0
            return
        self._failures += 1
        if self._failures >= self.patience:
            self._trainer.stop(
                f"{self.metric} has not become better than {self._best} for {self.patience} times",
                by=self,
            )


def is_better(
    found: float, best: float | None, *, larger: bool = False, least: float = 0.0
) -> bool:
    """Whether a number is better than the best so far, which every number is but NaN at first."""
    if math.isnan(found):
        return False
    return best is None or (found - best > least if larger else best - found > least)
