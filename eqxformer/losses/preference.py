"""Direct preference optimisation: answers that people liked become likelier than the others."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from eqxformer.data.preferences import PreferenceBatch
from eqxformer.keys import split
from eqxformer.losses.against import Comparison
from eqxformer.losses.cross_entropy import Loss, cross_entropies
from eqxformer.losses.objective import Question, Supervised
from eqxformer.losses.pieces import summed
from eqxformer.losses.tokens import NextToken


class DirectPreference(Comparison):
    """DPO: `-log sigmoid(beta * (log p/r of the chosen - log p/r of the rejected))`.

    Rafailov et al. 2023, equation 7; `p` is what the model gives an answer and `r` what a frozen
    reference gives it, usually the model before this training. Log-probabilities are sums over the
    tokens that count.

    Arguments:
        beta: how far the model is kept near the reference; the smaller, the farther it may go.
        label_smoothing: the share of preferences taken to be the wrong way round (Mitchell 2023).
        task: how an answer is asked for: `NextToken()` of a `TokenBatch`, `SequenceToSequence()`
            of a `PairBatch`.

    A pair of which no token counts, such as one that fills up a batch, counts for nothing.

    The reference is `with_reference(batch, reference)`, once for each batch, or in every step:
    `DirectPreference().against(reference)`. Metrics are the `margin`, which is what the sigmoid is
    of, and the `accuracy`: how often it is above 0.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8)
        >>> model = config.build(key=jax.random.key(0))
        >>> answers = jnp.arange(36).reshape(4, 9)
        >>> batch = ef.PreferenceBatch(ef.TokenBatch(answers[:2]), ef.TokenBatch(answers[2:]))
        >>> loss = ef.DirectPreference(beta=0.1).against(model)
        >>> round(float(loss(model, batch).mean), 4)  # log 2: no preference yet
        0.6931
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    task: Supervised = NextToken()

    def check(self) -> None:
        if not self.beta > 0.0 or not 0.0 <= self.label_smoothing < 0.5:
            raise ValueError(
                "`beta` must be above 0, and `label_smoothing` at least 0 and below 0.5; "
                f"got {self.beta} and {self.label_smoothing}."
            )

    def __call__(
        self, model: Any, batch: PreferenceBatch, /, *, key: PRNGKeyArray | None = None
    ) -> Loss:
        """The loss over a batch with references; a key switches dropout on."""
        references = batch.chosen_reference, batch.rejected_reference
        if references[0] is None or references[1] is None:
            raise ValueError(
                "The batch has no log-probabilities of a reference; fill them in with "
                "`with_reference(batch, reference)`, or use `against(reference)` as the loss."
            )
        counted = self._counted(batch)
        chosen, rejected = self.log_probabilities(model, batch, key=key)
        gains = chosen - jnp.asarray(references[0]), rejected - jnp.asarray(references[1])
        margin = jnp.where(counted, self.beta * (gains[0] - gains[1]), 0.0)
        share = self.label_smoothing
        losses = -(1.0 - share) * jax.nn.log_sigmoid(margin) - share * jax.nn.log_sigmoid(-margin)
        metrics = {"margin": margin.sum(), "accuracy": jnp.sum((margin > 0).astype(jnp.float32))}
        total, pairs = jnp.where(counted, losses, 0.0).sum(), counted.astype(jnp.float32).sum()
        return Loss(total, pairs, metrics)

    def compare(
        self,
        model: Any,
        frozen: Any,
        batch: PreferenceBatch,
        /,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Loss:
        """The loss over a batch beside the reference; a key switches the model's dropout on."""
        return self(model, self.with_reference(batch, frozen), key=key)

    def with_reference(self, batch: PreferenceBatch, reference: Any) -> PreferenceBatch:
        """The batch with the log-probabilities that a reference model gives its answers."""
        chosen, rejected = self.log_probabilities(reference, batch)
        return dataclasses.replace(batch, chosen_reference=chosen, rejected_reference=rejected)

    def log_probabilities(
        self, model: Any, batch: PreferenceBatch, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """What a model gives the chosen and the rejected answers, in nats."""
        keys = split(key, 2)
        answers = (batch.chosen, batch.rejected)
        chosen, rejected = (
            log_probability(self.task, model, self.task.question(answer), key=each)
            for answer, each in zip(answers, keys, strict=True)
        )
        return chosen, rejected

    def _counted(self, batch: PreferenceBatch) -> Bool[Array, "*batch"]:
        """Which pairs have a token that counts, in either of their answers."""
        answers = (batch.chosen, batch.rejected)
        chosen, rejected = (
            (self.task.question(answer).weights != 0).any(axis=-1) for answer in answers
        )
        return chosen | rejected


def log_probability(
    task: Supervised, model: Any, question: Question, *, key: PRNGKeyArray | None = None
) -> Float[Array, "*batch"]:
    """The weighted sum over a sequence of the log-probabilities of its targets, in nats."""
    answer = task.answer(model, question, key=key)

    def of(hidden: Array, targets: Array, weights: Array) -> Float[Array, "*batch"]:
        return -cross_entropies(answer.scored(hidden), targets, weights).sum(axis=-1)

    vocab = eqx.filter_eval_shape(lambda: answer.scores).shape[-1]
    return summed(of, answer.hidden, question.targets, question.weights, vocab=vocab)
