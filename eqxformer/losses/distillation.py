"""Distillation: a small model learns what a large one thinks of every token or class."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqxformer.losses.against import Comparison
from eqxformer.losses.cross_entropy import Loss
from eqxformer.losses.objective import Answer, Supervised
from eqxformer.losses.pieces import summed
from eqxformer.losses.tokens import NextToken


class Distillation(Comparison):
    """`soft * T^2 * KL(teacher || student) + (1 - soft) * hard loss` (Hinton et al. 2015).

    Both distributions are of scores divided by the temperature `T`; `T^2` keeps the size of the
    gradients. The mean is over what counts as a target in the batch.

    Arguments:
        task: what is asked of both, and the hard loss: `NextToken()`, `MaskedLM()`,
            `SequenceToSequence()`, `SequenceClassification()`, ...
        temperature: above 1, the teacher's small probabilities count more.
        soft: the share of the teacher's part; 1 for no hard loss.

    `Distillation().against(teacher)` is the loss. Its metric `divergence` is `KL` before it is
    scaled. Raises `ValueError` for a teacher of another vocabulary.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> small = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8)
        >>> large = ef.families.gpt(vocab=65, dim=32, layers=2, heads=2, context=8)
        >>> student, teacher = (c.build(key=jax.random.key(0)) for c in (small, large))
        >>> loss = ef.Distillation(temperature=2.0).against(teacher)
        >>> batch = ef.TokenBatch(jnp.arange(18).reshape(2, 9))
        >>> sorted(loss(student, batch).means())
        ['divergence', 'loss']
    """

    task: Supervised = NextToken()
    temperature: float = 2.0
    soft: float = 0.5

    def check(self) -> None:
        if not self.temperature > 0.0 or not 0.0 < self.soft <= 1.0:
            raise ValueError(
                "`temperature` must be above 0, and `soft` above 0 and at most 1; "
                f"got {self.temperature} and {self.soft}."
            )

    def __call__(self, model: Any, batch: Any, /, *, key: PRNGKeyArray | None = None) -> Loss:
        """Raises `ValueError`: there is a loss only against a teacher."""
        raise ValueError("Distillation needs a teacher: use `Distillation(...).against(teacher)`.")

    def compare(
        self, model: Any, frozen: Any, batch: Any, /, *, key: PRNGKeyArray | None = None
    ) -> Loss:
        """The loss over a batch beside the teacher; a key switches the student's dropout on."""
        question = self.task.question(batch)
        student = self.task.answer(model, question, key=key)
        teacher = self.task.answer(frozen, question)
        apart = divergence(student, teacher, question.weights, self.temperature)
        weight, metrics = jnp.sum(question.weights), {"divergence": apart}
        total = self.soft * self.temperature**2 * apart
        if self.soft < 1.0:
            total = total + (1.0 - self.soft) * self.task.judge(student, question).total
        return self.task.penalised(Loss(total, weight, metrics), student)


def divergence(
    student: Answer, teacher: Answer, weights: Float[Array, "*batch"], temperature: float
) -> Float[Array, ""]:
    """The weighted sum over places of `KL(teacher || student)` at a temperature, in nats.

    Raises `ValueError` for an answer of plain numbers, such as those of a regression.
    """
    if weights.shape != student.hidden.shape[:-1]:
        raise ValueError(
            "A teacher is followed in how likely it finds each token or class, one weight a place; "
            f"the weights {list(weights.shape)} are not places of {list(student.hidden.shape)}. "
            "Learn the teacher's numbers as the targets of the task itself."
        )

    def of(mine: Array, theirs: Array, weights: Array) -> Float[Array, ""]:
        mine, theirs = student.scored(mine), teacher.scored(theirs)
        if mine.shape[-1] != theirs.shape[-1]:
            raise ValueError(
                "Teacher and student must score the same tokens or classes; the teacher has "
                f"{theirs.shape[-1]} of them, the student {mine.shape[-1]}."
            )
        return jnp.sum(weights * _apart(mine, theirs, weights != 0, temperature))

    vocab = eqx.filter_eval_shape(lambda: student.scored(student.hidden)).shape[-1]
    return summed(of, student.hidden, teacher.hidden, weights, vocab=vocab)


def _apart(mine: Array, theirs: Array, counted: Array, temperature: float) -> Array:
    """`KL` of the second from the first at each place; 0 where nothing counts."""
    logs = [
        jax.nn.log_softmax(jnp.where(counted[..., None], x, 0).astype(jnp.float32) / temperature)
        for x in (mine, theirs)
    ]
    # What the teacher forbids adds nothing: 0 x infinity would be NaN, in the gradient too.
    possible = logs[1] > -jnp.inf
    student, teacher = (jnp.where(possible, log, 0.0) for log in logs)
    return jnp.sum(jnp.exp(logs[1]) * (teacher - student), axis=-1)
