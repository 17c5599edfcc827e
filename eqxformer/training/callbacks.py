"""What happens besides the steps: validation, samples, measuring, saving."""

import json
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax

from eqxformer.losses.cross_entropy import Loss
from eqxformer.losses.objective import LossFunction
from eqxformer.losses.tokens import NextToken

if TYPE_CHECKING:
    from eqxformer.training.trainer import Trainer


_LARGEST_EXPONENT = 709.0  # of a float


class Record(NamedTuple):
    """Numbers measured at a step.

    `step` counts from 1, `tokens` are those read up to it, `seconds` are since training began.

    Example:
        >>> import eqxformer as ef
        >>> record = ef.Record(step=3, tokens=600, seconds=1.5, values={"loss": 2.25})
        >>> record.step, record.values["loss"]
        (3, 2.25)
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

    Where several processes train, every one of them calls callbacks, since what computes with the
    model must be asked for by all; those that only write or show numbers set `everywhere` to False,
    and are called on the first process alone.

    Example:
        >>> import eqxformer as ef
        >>> class PrintLoss(ef.Callback):
        ...     def recorded(self, record):
        ...         print(record.step, record.values["loss"])
        >>> callbacks = [PrintLoss()]  # for a `Trainer`
        >>> callbacks[0].recorded(ef.Record(step=3, tokens=600, seconds=1.5, values={"loss": 2.25}))
        3 2.25
    """

    every: int | None = None
    everywhere: bool = True

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

    def memory(self) -> dict[str, Any]:
        """What has to be known to go on from here, as plain JSON values; goes into checkpoints."""
        return {}

    def recall(self, memory: dict[str, Any]) -> None:
        """Takes back what `memory` gave when a checkpoint was made; before `started`."""


def number(name: str, value: Any) -> float:
    """A number as Python's own; `TypeError` where a value is none."""
    if isinstance(value, int | float):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        shape = getattr(value, "shape", None)
        shown = type(value).__name__ if shape is None else f"an array of shape {shape}"
        raise TypeError(
            f"What is published must be numbers by their names; got {shown} as `{name}`. "
            "Give one number, such as the mean."
        ) from None


def memory_of(name: str, callback: Callback) -> dict[str, Any]:
    """What a callback has to know to go on; `TypeError` where no checkpoint can hold it."""
    memory = callback.memory()
    try:
        json.dumps(memory)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`memory` of the callback {name} must give plain JSON values, such as `float(x)` of "
            f"an array; got {memory}: {error}."
        ) from None
    return memory


class Validate(Callback):
    """Publishes `validation_loss`: the mean per token over some batches, without dropout.

    Also at the end, of the model that comes out, unless that has been measured already or Ctrl-C
    made it the end. NaN where no token counts. What the loss measures besides is published
    likewise, such as `validation_accuracy` with `TokenScores`; of a `cross_entropy` the
    exponential, as `validation_perplexity`.

    Arguments:
        batches: what is validated with, all of them each time.
        every: steps between two times.
        loss: what is measured; `NextToken()` if None.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> batches = ef.consecutive(np.arange(33), length=4, batch=2)
        >>> validate = ef.Validate(batches, every=100, loss=ef.TokenScores())
        >>> len(validate.batches), validate.every
        (4, 100)
    """

    def __init__(
        self, batches: Iterable[Any], *, every: int, loss: LossFunction | None = None
    ) -> None:
        self.batches, self.every = list(batches), every
        if not self.batches:
            raise ValueError("`Validate` needs at least one batch to validate with; got none.")
        self._measure = evaluator(NextToken() if loss is None else loss)
        self._step: int | None = 0  # of the model that was measured last

    def started(self, trainer: "Trainer") -> None:
        if trainer.step == 0:
            self._step = 0
        elif self._step is None and self.every and trainer.step % self.every == 0:
            self._step = trainer.step  # which checkpoints did not always say

    def reached(self, trainer: "Trainer") -> None:
        self._publish(trainer.state.averaged, trainer)

    def finished(self, trainer: "Trainer") -> None:
        if not trainer.interrupted and (self._step != trainer.step or _is_replaced(trainer)):
            self._publish(trainer.outcome, trainer)

    def memory(self) -> dict[str, Any]:
        return {"step": self._step}

    def recall(self, memory: dict[str, Any]) -> None:
        self._step = memory.get("step")

    def _publish(self, model: Any, trainer: "Trainer") -> None:
        whole = self._measure(model, self.batches)
        means = whole.means() if whole.weight else dict.fromkeys(whole.means(), math.nan)
        values = {f"validation_{name}": float(value) for name, value in means.items()}
        if "cross_entropy" in means:
            values["validation_perplexity"] = perplexity(values.pop("validation_cross_entropy"))
        self._step = trainer.step
        trainer.publish(values)


def _is_replaced(trainer: "Trainer") -> bool:
    """Whether the model that comes out is another than that of the last step."""
    models = (trainer.outcome, trainer.state.averaged)
    one, other = (jax.tree.leaves(model) for model in models)
    return len(one) != len(other) or any(a is not b for a, b in zip(one, other, strict=True))


def perplexity(cross_entropy: float) -> float:
    """`exp(cross_entropy)`: between how many equally likely tokens a model is as uncertain."""
    return math.inf if cross_entropy > _LARGEST_EXPONENT else math.exp(cross_entropy)


def evaluator(loss: LossFunction) -> Callable[[Any, Iterable[Any]], Loss]:
    """A function from a model and batches to their `Loss` together, weighted by token.

    Arguments:
        loss: what is measured; it must give a `Loss`, not a scalar.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> model = lambda tokens, *, key=None: jnp.zeros((*tokens.shape, 4))  # all of 4 ids alike
        >>> batches = [ef.TokenBatch(jnp.array([[1, 2, 3]])), ef.TokenBatch(jnp.array([[3, 2, 1]]))]
        >>> loss = ef.evaluator(ef.NextToken())(model, batches)
        >>> round(float(loss.mean), 3), float(loss.weight)
        (1.386, 4.0)
    """

    @eqx.filter_jit
    def measure(loss: LossFunction, model: Any, batch: Any) -> Loss:
        value = loss(model, batch, key=None)
        if not isinstance(value, Loss):
            raise TypeError(
                "A loss to validate with must be a `Loss`, which keeps sum and weight apart; "
                "got a scalar. Use `NextToken()` or `SequenceToSequence()`."
            )
        return value

    def evaluate(model: Any, batches: Iterable[Any]) -> Loss:
        return sum((measure(loss, model, batch) for batch in batches), Loss.zero())

    return evaluate


class ShowSamples(Callback):
    """Shows what `draw(model, step)` makes of the model as text.

    Arguments:
        draw: gives a text, of the model and the number of the step.
        show: what is done with it, such as `print`.
        every: steps between two times.

    Example:
        >>> import eqxformer as ef
        >>> samples = ef.ShowSamples(lambda model, step: f"after {step} steps", print, every=500)
        >>> samples.show(samples.draw(None, 500))
        after 500 steps
    """

    def __init__(
        self, draw: Callable[[Any, int], str], show: Callable[[str], Any], *, every: int
    ) -> None:
        self.draw, self.show, self.every = draw, show, every

    def reached(self, trainer: "Trainer") -> None:
        self.show(self.draw(trainer.state.averaged, trainer.step))


class Evaluate(Callback):
    """Publishes what `measure(model)` finds at the end, unless Ctrl-C made it the end.

    With `every`, also at intervals before. `values` keeps what was found last.

    Arguments:
        measure: gives numbers of the model by their names.
        every: steps between two times; None for the end alone.

    Example:
        >>> import eqxformer as ef
        >>> evaluate = ef.Evaluate(lambda model: {"parameters": float(ef.count(model))}, every=1000)
        >>> evaluate.every, evaluate.values
        (1000, {})
    """

    def __init__(
        self, measure: Callable[[Any], dict[str, float]], *, every: int | None = None
    ) -> None:
        self.measure, self.every = measure, every
        self.values: dict[str, float] = {}

    def reached(self, trainer: "Trainer") -> None:
        if trainer.step < trainer.steps:
            self._publish(trainer.state.averaged, trainer)

    def finished(self, trainer: "Trainer") -> None:
        if not trainer.interrupted:
            self._publish(trainer.outcome, trainer)

    def _publish(self, model: Any, trainer: "Trainer") -> None:
        self.values = self.measure(model)
        trainer.publish(self.values)


class Save(Callback):
    """Gives the model to `save` at intervals and at the end, also at the one by Ctrl-C.

    `step` is the step of the model that was saved last, 0 before there is one.

    Arguments:
        save: what keeps the model.
        every: steps between two times; None for the end alone.

    Example:
        >>> import eqxformer as ef
        >>> save = ef.Save(lambda model: ef.save(model, "run/model"), every=1000)
        >>> save.every, save.step
        (1000, 0)
    """

    def __init__(self, save: Callable[[Any], Any], *, every: int | None = None) -> None:
        self.save, self.every, self.step = save, every, 0

    def started(self, trainer: "Trainer") -> None:
        if trainer.step == 0:
            self.step = 0

    def reached(self, trainer: "Trainer") -> None:
        if self.step != trainer.step:
            self._save(trainer.state.averaged, trainer.step)

    def finished(self, trainer: "Trainer") -> None:
        if self.step != trainer.step or _is_replaced(trainer):
            self._save(trainer.outcome, trainer.step)

    def memory(self) -> dict[str, Any]:
        return {"step": self.step}

    def recall(self, memory: dict[str, Any]) -> None:
        self.step = memory.get("step", 0)

    def _save(self, model: Any, step: int) -> None:
        self.save(model)
        self.step = step
