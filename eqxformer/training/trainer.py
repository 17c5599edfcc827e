"""The thin loop round a training step: numbers out, callbacks in, an orderly end."""

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import optax
from jaxtyping import PRNGKeyArray

from eqxformer.losses.tokens import LossFunction, NextToken
from eqxformer.training.accumulation import check_microbatch
from eqxformer.training.callbacks import Callback, Record
from eqxformer.training.step import Metrics, TrainState, make_step

_RUN_AHEAD = 4  # steps handed to the device before the numbers of the first are asked for


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient became infinite or NaN at `step`."""

    def __init__(self, step: int, values: dict[str, float]):
        shown = ", ".join(f"{name}={value:g}" for name, value in values.items())
        super().__init__(
            f"Step {step} is not finite: {shown}. "
            "Try a smaller learning rate, a longer warm-up or clipped gradients."
        )
        self.step = step


@dataclasses.dataclass
class Trainer:
    """Trains a model for some steps: `Trainer(...).fit()`.

    Arguments:
        model: what is trained; the original stays as it is.
        batches: a function from the number of a step, from 0 on, to its batch.
        optimizer: an optax optimizer, as `AdamW(...).build(steps)` makes it.
        steps: how many.
        key: the root of the randomness in the steps, such as dropout.
        loss: what is minimised.
        microbatch: rows whose gradient is made at once; see `make_step`.
        callbacks: what else happens; see `Callback`.

    The numbers of a step are read some steps later, so that the device never waits for the host.
    Ctrl-C ends training after the current step, as if it had been the last; a second one at once.

    Example:
        >>> import eqxformer as ef, jax, numpy as np
        >>> config = ef.families.gpt(vocab=9, dim=8, layers=1, heads=2, context=4)
        >>> tokens = np.arange(99, dtype=np.int32) % 9
        >>> trainer = ef.Trainer(
        ...     model=config.build(key=jax.random.key(0)),
        ...     batches=ef.RandomWindows(length=4, batch=2).build(tokens),
        ...     optimizer=ef.AdamW(1e-2).build(steps=3),
        ...     steps=3,
        ...     key=jax.random.key(1),
        ... )
        >>> int(trainer.fit().step)
        3
    """

    model: Any
    batches: Callable[[int], Any]
    optimizer: optax.GradientTransformation
    steps: int
    _: dataclasses.KW_ONLY
    key: PRNGKeyArray
    loss: LossFunction = dataclasses.field(default_factory=NextToken)
    microbatch: int | None = None
    callbacks: Sequence[Callback] = ()

    step: int = dataclasses.field(default=0, init=False)
    tokens: int = dataclasses.field(default=0, init=False)
    interrupted: bool = dataclasses.field(default=False, init=False)
    state: TrainState = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1; got {self.steps}.")
        check_microbatch(self.microbatch)

    def fit(self) -> TrainState:
        """The state after the last step. Raises `NonFiniteLoss` when training breaks down.

        Every call begins anew with the model that was given.
        """
        self.step, self.tokens, self.interrupted = 0, 0, False
        self.state = TrainState.create(self.model, self.optimizer, key=self.key)
        self._begin = time.perf_counter()
        with contextlib.ExitStack() as stack:
            asked = stack.enter_context(_ctrl_c())
            for callback in self.callbacks:
                callback.started(self)
                stack.callback(callback.closed)
            self._loop(asked)
            for callback in self.callbacks:
                callback.finished(self)
        return self.state

    def publish(self, values: dict[str, float]) -> None:
        """Passes numbers measured after the current step on to every callback."""
        self._record(self.step, self.tokens, values)

    def _loop(self, asked: threading.Event) -> None:
        update = make_step(self.loss, self.optimizer, microbatch=self.microbatch)
        pending: deque[tuple[int, int, Metrics]] = deque()
        while self.step < self.steps and not self.interrupted:
            batch = self.batches(self.step)
            self.state, metrics = update(self.state, batch)
            self.step += 1
            self.tokens += getattr(batch, "token_count", 0)
            pending.append((self.step, self.tokens, metrics))
            self.interrupted = asked.is_set()
            due = [c for c in self.callbacks if c.every and self.step % c.every == 0]
            last = self.interrupted or self.step == self.steps
            while len(pending) > (0 if due or last else _RUN_AHEAD):
                self._read(*pending.popleft())
            for callback in due:
                callback.reached(self)

    def _read(self, step: int, tokens: int, metrics: Metrics) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._record(step, tokens, values)
        if not all(math.isfinite(values[name]) for name in ("loss", "gradient_norm")):
            raise NonFiniteLoss(step, values)

    def _record(self, step: int, tokens: int, values: dict[str, float]) -> None:
        seconds = time.perf_counter() - self._begin
        record = Record(step, tokens, seconds, values)
        for callback in self.callbacks:
            callback.recorded(record)


@contextlib.contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets instead of raising; the second Ctrl-C raises as ever."""
    asked = threading.Event()

    def notice(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGINT, notice)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
