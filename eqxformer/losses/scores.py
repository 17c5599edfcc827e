"""How well tokens are known: cross-entropy and accuracy, for validation."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from eqxformer.config import Config
from eqxformer.data.batches import check_weights_shape
from eqxformer.losses.chunked import chunk_count, dealt_out
from eqxformer.losses.cross_entropy import Loss, cross_entropy
from eqxformer.losses.objective import Answer, LossFunction, Question
from eqxformer.losses.tokens import NextToken, TokenLoss

_CHUNK = 2048  # tokens whose logits exist at once


class TokenScores(Config):
    """Cross-entropy of each token, and how often the likeliest one is right.

    `TokenScores()(model, batch)` is a `Loss`: plain cross-entropy, without what the objective adds
    to it for training, and the metrics `cross_entropy`, the same, and `accuracy`. Of tokens that
    are equally likely, the one with the lowest id is the answer.

    Arguments:
        objective: what asks for the tokens.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8)
        >>> model = config.build(key=jax.random.key(0))
        >>> scores = ef.TokenScores()(model, ef.TokenBatch(jnp.arange(18).reshape(2, 9)))
        >>> sorted(scores.means())
        ['accuracy', 'cross_entropy', 'loss']
    """

    objective: TokenLoss = NextToken()

    def __call__(self, model: Any, batch: Any, /, *, key: PRNGKeyArray | None = None) -> Loss:
        """The scores over a batch; a key switches dropout on."""
        question = self.objective.question(batch)
        return _scores(self.objective.answer(model, question, key=key), question)


def measured(loss: LossFunction) -> LossFunction:
    """What to measure for validation: of a loss of tokens their scores, else the loss itself."""
    return TokenScores(loss) if isinstance(loss, TokenLoss) else loss


def _scores(answer: Answer, question: Question) -> Loss:
    """The scores of hidden states, some tokens at a time, so that not all logits exist."""

    def of(hidden: Array, targets: Array, weights: Array) -> Loss:
        logits = answer.scored(hidden)
        loss = cross_entropy(logits, targets, weights=weights)
        right = jnp.where(logits.argmax(-1) == targets, weights, 0.0)
        return Loss(loss.total, loss.weight, {"cross_entropy": loss.total, "accuracy": right.sum()})

    hidden, targets, weights = answer.hidden, question.targets, question.weights
    check_weights_shape(weights.shape, targets.shape)  # before the rows are one behind the other
    rows = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1), weights.reshape(-1)
    count = chunk_count(len(rows[0]), _CHUNK)
    sums = jax.lax.map(lambda each: of(*each), tuple(dealt_out(x, count) for x in rows))
    return jax.tree.map(lambda x: x.sum(), sums)
