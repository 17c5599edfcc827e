"""What losses have in common: a question that a batch asks, and what a model answers to it."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Float, Num, PRNGKeyArray

from eqxformer.config import Config
from eqxformer.layers.feed_forward import RouterLosses
from eqxformer.losses.cross_entropy import Loss


class LossFunction(Protocol):
    """What a training step minimises: a `Loss`, or simply a scalar.

    `key` switches dropout on and is absent when the model is evaluated.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> def loss(model, batch, /, *, key=None):
        ...     return jnp.mean(jnp.square(model(batch) - 1.0))
        >>> function: ef.LossFunction = loss  # what `make_step`, `Trainer` and `evaluator` take
        >>> float(function(lambda x: 3.0 * x, jnp.ones(4)))
        4.0
    """

    def __call__(
        self, model: Any, batch: Any, /, *, key: PRNGKeyArray | None = None
    ) -> Loss | Float[Array, ""]: ...


class Objective(Config):
    """A loss as a value: `objective(model, batch, key=key)` is a `Loss`.

    `splits` says whether the loss of a batch is the sum of those of its rows, so that gradients can
    be made some rows at a time, as a CPU does unasked. One of your own in which rows depend on one
    another must say that it does not.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> class SquaredError(ef.Objective):
        ...     def __call__(self, model, batch, /, *, key=None):
        ...         x, y = batch
        ...         return ef.Loss(jnp.sum(jnp.square(model(x) - y)), jnp.float32(len(y)))
        >>> batch = jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])
        >>> float(SquaredError()(lambda x: x, batch).mean)
        2.0
    """

    @property
    def splits(self) -> bool:
        """Whether the rows of a batch do not depend on one another; they do not here."""
        return True

    def __call__(self, model: Any, batch: Any, /, *, key: PRNGKeyArray | None = None) -> Loss:
        """The loss over a batch; a key switches dropout on."""
        raise NotImplementedError(f"{self.type_name} must say what it asks the model.")


class Question(NamedTuple):
    """What a batch asks: `model(*inputs, **options)` should score the `targets` highest.

    Each target counts by its weight; where that is 0, any number may stand.
    """

    inputs: tuple[Array, ...]
    options: dict[str, Any]
    targets: Num[Array, "*batch"]
    weights: Float[Array, "*batch"]


class Answer(NamedTuple):
    """What a model makes of a question: hidden states, and the function from these to scores.

    Without a `head`, the hidden states are the scores themselves.
    """

    hidden: Float[Array, "*batch dim"]
    head: Callable[[Float[Array, "*any dim"]], Float[Array, "*any vocab"]] | None = None
    routers: RouterLosses | None = None

    @property
    def scores(self) -> Float[Array, "*batch vocab"]:
        """The scores at every place."""
        return self.scored(self.hidden)

    def scored(self, hidden: Float[Array, "*any dim"]) -> Float[Array, "*any vocab"]:
        """The scores of hidden states of any places."""
        return hidden if self.head is None else self.head(hidden)


class Supervised(Objective):
    """An objective whose batches ask a question that has right answers.

    One of your own defines `question` and `judge`.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> class AbsoluteError(ef.Supervised):
        ...     def question(self, batch, /):
        ...         return ef.Question((batch.tokens,), {}, batch.labels, batch.label_weights())
        ...     def judge(self, answer, question):
        ...         apart = jnp.abs(answer.scores - question.targets)
        ...         return ef.Loss(jnp.sum(question.weights * apart), jnp.sum(question.weights))
        >>> batch = ef.LabelledBatch(jnp.array([[5, 6]]), labels=jnp.array([[1.0, -3.0]]))
        >>> float(AbsoluteError()(lambda tokens, *, key: jnp.zeros(tokens.shape), batch).mean)
        2.0
    """

    def question(self, batch: Any, /) -> Question:
        """What the batch asks."""
        raise NotImplementedError(f"{self.type_name} must say what it asks the model.")

    def answer(self, model: Any, question: Question, *, key: PRNGKeyArray | None = None) -> Answer:
        """What the model answers: here the scores, at once."""
        return Answer(model(*question.inputs, **question.options, key=key))

    def judge(self, answer: Answer, question: Question) -> Loss:
        """How far the answer is from the right one."""
        raise NotImplementedError(f"{self.type_name} must say how an answer is judged.")

    def penalised(self, loss: Loss, answer: Answer) -> Loss:
        """The loss with what else is minimised beside it; nothing here."""
        return loss

    def __call__(self, model: Any, batch: Any, /, *, key: PRNGKeyArray | None = None) -> Loss:
        """The loss over a batch; a key switches dropout on."""
        question = self.question(batch)
        answer = self.answer(model, question, key=key)
        return self.penalised(self.judge(answer, question), answer)
