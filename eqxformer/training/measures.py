"""How fast a run is, and what it needs: tokens and operations per second, memory, learning rate."""

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax

from eqxformer.training.callbacks import Callback

if TYPE_CHECKING:
    from eqxformer.training.trainer import Trainer


class Measure(Callback):
    """Publishes numbers about the run itself every so many steps.

    `tokens_per_second`, since the last time; `memory_bytes`, the most that the first device has
    held at once, or this process where the device does not say; and where it is told how,
    `learning_rate`, `flops_per_second` and `utilisation`.

    Arguments:
        every: steps between two times.
        learning_rate: the learning rate of a step, counted from 1.
        flops: floating point operations of a step, as the formula of the model says.
        peak: operations per second that all devices can do at most; `utilisation` is the share of
            it that a step's operations reach (Chowdhery et al. 2022, appendix B, call it MFU).

    Example:
        >>> import eqxformer as ef
        >>> settings = ef.AdamW(ef.WarmupCosine(peak=1e-3, warmup=100))
        >>> measure = ef.Measure(every=50, learning_rate=lambda step: settings.rate(step, of=2000))
    """

    def __init__(
        self,
        *,
        every: int,
        learning_rate: Callable[[int], float] | None = None,
        flops: float | None = None,
        peak: float | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"`every` must be at least 1; got {every}.")
        if peak is not None and (flops is None or peak <= 0):
            raise ValueError(f"`peak` must be above 0 and needs `flops`; got {peak}, {flops}.")
        self.every, self.learning_rate, self.flops, self.peak = every, learning_rate, flops, peak

    def started(self, trainer: "Trainer") -> None:
        self._last = (trainer.step, trainer.tokens, trainer.seconds)

    def reached(self, trainer: "Trainer") -> None:
        step, tokens, seconds = self._last
        now = self._last = (trainer.step, trainer.tokens, trainer.seconds)
        spent = max(now[2] - seconds, 1e-9)
        values = {"tokens_per_second": (now[1] - tokens) / spent, "memory_bytes": memory()}
        if self.learning_rate is not None:
            values["learning_rate"] = self.learning_rate(trainer.step)
        if self.flops is not None:
            values["flops_per_second"] = self.flops * (now[0] - step) / spent
            if self.peak is not None:
                values["utilisation"] = values["flops_per_second"] / self.peak
        trainer.publish(values)


def memory() -> float:
    """Bytes that the first device has held at most; those of this process where it does not say."""
    told = jax.local_devices()[0].memory_stats()
    if told and "peak_bytes_in_use" in told:
        return float(told["peak_bytes_in_use"])
    try:
        import resource
    except ImportError:  # on Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
