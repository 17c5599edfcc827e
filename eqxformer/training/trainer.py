"""The thin loop round a training step: numbers out, callbacks in, checkpoints, an orderly end."""

import contextlib
import dataclasses
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import optax
from jaxtyping import PRNGKeyArray

from eqxformer.data.feed import Feed, feed
from eqxformer.inspect.watch import Watch
from eqxformer.losses.objective import LossFunction
from eqxformer.losses.tokens import NextToken
from eqxformer.optimizers.trainable import Trainable
from eqxformer.sharding.placement import Placement
from eqxformer.training.accumulation import check_microbatch
from eqxformer.training.callbacks import Callback, Record, memory_of, number
from eqxformer.training.checkpoints import Checkpoints, given_up
from eqxformer.training.gradients import Metrics
from eqxformer.training.precision import Precision
from eqxformer.training.processes import all_or_none, told_by_each
from eqxformer.training.signals import StopRequest, stop_requests
from eqxformer.training.state import TrainState
from eqxformer.training.step import make_step
from eqxformer.training.watching import first_fault

_RUN_AHEAD = 4  # steps handed to the device before the numbers of the first are asked for


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient became infinite or NaN at `step`; `found` is a watch's report."""

    def __init__(self, step: int, values: dict[str, float], found: str = ""):
        told = {name: value for name, value in values.items() if name != "skipped"}
        shown = ", ".join(f"{name}={value:g}" for name, value in told.items())
        super().__init__(
            f"Step {step} is not finite: {shown}. {found}"
            "Try a smaller learning rate, a longer warm-up or clipped gradients."
        )
        self.step = step


@dataclasses.dataclass
class Trainer:
    """Trains a model for some steps: `Trainer(...).fit()`.

    Arguments:
        model: what is trained; the original stays as it is.
        batches: a function from the number of a step, from 0 on, to its batch; or a Grain dataset
            or iterator; or a `Feed` of your own. An iterator and a `Feed` are yours: every `fit`
            begins where they stood when they were given, and none closes them.
        optimizer: an optax optimizer, as `AdamW(...).build(steps)` makes it.
        steps: how many.
        key: the root of the randomness in the steps, such as dropout.
        loss: what is minimised.
        microbatch: rows whose gradient is made at once; see `make_step`.
        trains: which arrays of the model are trained.
        precision: the number types of a step.
        skips: how many steps in a row may have a loss or gradient that is not finite; such a step
            changes nothing. With 0, the first one ends training.
        watch: what looks for the first broken numbers of the step that ends training, and says in
            the error where they are; None for nobody. The model must still be there then, so each
            step waits for the numbers of the one before.
        callbacks: what else happens; see `Callback`.
        checkpoints: where the state is kept, so that training that ended before its last step goes
            on from there: with the same batches, the same randomness and so the same bits.
        placement: the mesh of devices that share the work, and the rules by which; None for one
            device. A checkpoint is read to whatever mesh there is.

    `outcome` is the model that comes out, once the last step is done.

    The numbers of a step are read some steps later, so that the device never waits for the host.
    Ctrl-C and SIGTERM end training after the current step, as if it had been the last; a second one
    at once. `interrupted` says that it was so, and `signal` by which.

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
    batches: Callable[[int], Any] | Feed | Any
    optimizer: optax.GradientTransformation
    steps: int
    _: dataclasses.KW_ONLY
    key: PRNGKeyArray
    loss: LossFunction = dataclasses.field(default_factory=NextToken)
    microbatch: int | None = None
    trains: Trainable = dataclasses.field(default_factory=Trainable)
    precision: Precision = dataclasses.field(default_factory=Precision)
    skips: int = 0
    watch: Watch | None = None
    callbacks: Sequence[Callback] = ()
    checkpoints: Checkpoints | None = None
    placement: Placement | None = None

    step: int = dataclasses.field(default=0, init=False)
    tokens: int = dataclasses.field(default=0, init=False)
    signal: int | None = dataclasses.field(default=None, init=False)
    stopped: str | None = dataclasses.field(default=None, init=False)
    state: TrainState = dataclasses.field(init=False)
    outcome: Any = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1; got {self.steps}.")
        if self.skips < 0:
            raise ValueError(f"`skips` must not be negative; got {self.skips}.")
        check_microbatch(self.microbatch)
        self._first = self._stands()

    def _stands(self) -> Any:
        """Where what the user made stands, at which every `fit` begins; None where nothing can be.

        So it is of a function or a dataset, of which each `fit` makes a feed of its own, and of an
        iterator whose state is not plain JSON, which goes on where it is.
        """
        if isinstance(self.batches, Feed):
            return self.batches.position()
        if not hasattr(self.batches, "__next__"):
            return None
        found = feed(self.batches)
        try:
            return found.position()
        except (TypeError, ValueError):
            return None

    @property
    def _callbacks(self) -> Sequence[Callback]:
        """Those that take part on this process; on the first one all do."""
        return [c for c in self.callbacks if c.everywhere or jax.process_index() == 0]

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended training before its last step."""
        return self.signal is not None

    @property
    def seconds(self) -> float:
        """How long training has taken, with what came before the checkpoint it goes on from."""
        return time.perf_counter() - self._begin

    def fit(self) -> TrainState:
        """The state after the last step. Raises `NonFiniteLoss` when training breaks down.

        Every call begins anew with the model that was given, but where there are checkpoints.
        """
        self.step, self.tokens, self.signal, self._skipped = 0, 0, None, 0
        self.stopped, self._stopper, self.outcome = None, None, None
        self._begin = time.perf_counter()
        with contextlib.ExitStack() as stack:
            self._feed = feed(self.batches)
            self._check_shares(self._feed.shares)
            if self._feed is not self.batches:
                stack.push(_closing(self._feed.close, "the feed"))
            if self._first is not None and self._feed.position() != self._first:
                self._feed.move_to(self._first)
            asked = stack.enter_context(stop_requests())
            if self.placement is not None:
                stack.enter_context(self.placement.set())
            self.state = self._created()
            if self.checkpoints is not None:
                stack.push(_closing(self.checkpoints.open().close, "the checkpoints"))
                self._go_on()
            for callback in self._callbacks:
                callback.started(self)
                stack.push(_closing(callback.closed, type(callback).__name__))
            self._loop(asked)
            if self.checkpoints is not None:
                self.checkpoints.wait()
            self.outcome = self.state.averaged  # or what a callback puts in its place
            for callback in self._callbacks:
                callback.finished(self)
        return self.state

    def publish(self, values: dict[str, Any]) -> None:
        """Passes numbers measured after the current step on to every callback.

        A number may be an array of one, which is read. Raises `TypeError` for what is none.
        """
        numbers = {name: number(name, value) for name, value in values.items()}
        self._record(self.step, self.tokens, numbers)

    def stop(self, reason: str, *, by: Callback | None = None) -> None:
        """Ends training after the current step, as if it had been the last.

        A run that goes on from there stays stopped, unless it has more `steps` than it had then, or
        no callback any more of the kind of `by`, which asks. After the last step, nothing is left
        to be stopped.
        """
        if self.outcome is None:
            self.stopped, self._stopper = reason, by

    def _created(self) -> TrainState:
        return TrainState.create(
            self.model if self.placement is None else self.placement.put(self.model),
            self.optimizer,
            key=self.key,
            trains=self.trains,
            precision=self.precision,
        )

    def _loop(self, asked: StopRequest) -> None:
        update = make_step(
            self.loss,
            self.optimizer,
            microbatch=self.microbatch,
            precision=self.precision,
            skips_nonfinite=self.skips > 0 or self.watch is not None,
        )
        ahead = _RUN_AHEAD if self.watch is None else 0
        pending: deque[tuple[int, int, Metrics]] = deque()
        while self.step < self.steps and not self.stopped and not self.interrupted:
            self._batch = batch = self._next_batch()
            self.state, metrics = update(self.state, batch)
            self.step += 1
            self.tokens += getattr(batch, "token_count", 0)
            pending.append((self.step, self.tokens, metrics))
            self.signal = asked.heard(self.step)
            last = self.interrupted or self.step == self.steps
            due = [c for c in self._callbacks if c.every and self.step % c.every == 0]
            saves = self._saves_at(self.step) or (last and self.checkpoints is not None)
            while len(pending) > (0 if due or last or saves or self.stopped else ahead):
                self._read(*pending.popleft())  # which may stop training: then all are read
            for callback in due:
                callback.reached(self)
            if saves or (self.stopped and self.checkpoints is not None):
                self._save()

    def _check_shares(self, shares: int) -> None:
        """Raises `ValueError` for a share of each batch that no other process completes."""
        if shares > 1 and (self.placement is None or shares != jax.process_count()):
            raise ValueError(
                f"The batches are one of {shares} shares, of which each process brings its own to "
                f"a `placement`; got {jax.process_count()} processes and "
                f"placement={self.placement}. Leave `share` away to give the whole batch."
            )

    def _next_batch(self) -> Any:
        batch = self._feed.next_batch()
        if self.placement is None:
            return batch
        lay = self.placement.batch_of_process if self._feed.shares > 1 else self.placement.batch
        return lay(batch)

    def _read(self, step: int, tokens: int, metrics: Metrics) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._record(step, tokens, values)
        if all(math.isfinite(values[name]) for name in ("loss", "gradient_norm")):
            self._skipped = 0
            return
        self._skipped += 1
        if self._skipped > self.skips:
            raise NonFiniteLoss(step, values, self._found())

    def _found(self) -> str:
        """Where the numbers of the newest step broke, which has changed nothing, if one watches."""
        if self.watch is None:
            return ""
        settings = {"microbatch": self.microbatch, "precision": self.precision}
        fault = first_fault(self.watch, self.loss, self.state, self._batch, **settings)
        if fault is None:
            return "All numbers of the model and of its gradient are finite. "
        return f"First broken: {fault}. "

    def _record(self, step: int, tokens: int, values: dict[str, float]) -> None:
        record = Record(step, tokens, self.seconds, values)
        for callback in self._callbacks:
            callback.recorded(record)

    def _saves_at(self, step: int) -> bool:
        return self.checkpoints is not None and step % self.checkpoints.every == 0

    def _save(self) -> None:
        """A checkpoint of everything that the next step depends on, and of what callbacks know."""
        assert self.checkpoints is not None
        progress = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "skipped": self._skipped,
            "stopped": self.stopped,
            "stopped_by": None if self._stopper is None else type(self._stopper).__name__,
            "steps": self.steps,
            "shares": self._feed.shares,
            "feed": self._positions(),
            "callbacks": {name: memory_of(name, each) for name, each in self._named_callbacks()},
        }
        self.checkpoints.save(self.step, self.state, progress)

    def _go_on(self) -> None:
        """Puts everything back to where the newest checkpoint is, if there is one."""
        assert self.checkpoints is not None
        if not self.checkpoints.exist():
            return
        self.state = given_up(self.state)  # there may be no room for two of them
        found = self.checkpoints.restore(self.state)
        assert found is not None
        self.state, progress = found.state, found.progress
        self.step, self.tokens = progress["step"], progress["tokens"]
        if self.step > self.steps:
            raise ValueError(
                f"The newest checkpoint is of step {self.step:,}, behind the last; `steps` must "
                f"be at least that, got {self.steps:,}."
            )
        self._begin -= progress["seconds"]
        self._skipped = progress["skipped"]
        self.stopped = progress["stopped"] if self._stays_stopped(progress) else None
        self._move_feed(progress)
        for name, callback in self._named_callbacks():
            callback.recall(progress["callbacks"].get(name, {}))

    def _stays_stopped(self, progress: dict[str, Any]) -> bool:
        """Whether this run ends where a run was stopped: it is as long, and who asked is there."""
        by, kinds = progress.get("stopped_by"), {type(each).__name__ for each in self.callbacks}
        return self.steps <= progress.get("steps", self.steps) and (by is None or by in kinds)

    def _positions(self) -> Any:
        """Where the feed stands: of shares, a list of where each process stands in its own.

        A function of the step stands at the same one in all, however many there are.
        """
        position = self._feed.position()
        same = self._feed.shares == 1 or self._feed.alike
        return position if same else told_by_each(position)

    def _move_feed(self, progress: dict[str, Any]) -> None:
        """Goes where `_positions` were; checkpoints of before there were lists have one for all."""
        position, now = progress["feed"], self._feed.shares
        then = progress.get("shares", now)
        several = isinstance(position, list)
        if then != now and (several or not self._feed.alike):
            raise ValueError(
                f"The checkpoint is of batches in shares of {then} processes, each of which stands "
                f"somewhere in its own; got shares of {now}. Go on with {then} processes, or begin "
                "anew."
            )
        with all_or_none():
            self._feed.move_to(position[jax.process_index()] if several else position)

    def _named_callbacks(self) -> Iterator[tuple[str, Callback]]:
        """Callbacks by the name of their class, numbered where there are several."""
        seen: Counter[str] = Counter()
        for callback in self._callbacks:
            name = type(callback).__name__
            seen[name] += 1
            yield (name if seen[name] == 1 else f"{name}-{seen[name]}"), callback


def _closing(close: Callable[[], Any], what: str) -> Callable[..., None]:
    """An end of an `ExitStack` that closes something and never hides the error that came first."""

    def end(kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            close()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"Then {what} could not be closed: {type(failure).__name__}: {failure}")

    return end
