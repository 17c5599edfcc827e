"""How well the next token is known: cross-entropy and accuracy, for validation."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from eqxformer.config import Config
from eqxformer.data.batches import TokenBatch
from eqxformer.losses.chunked import chunk_count, dealt_out
from eqxformer.losses.cross_entropy import Loss, cross_entropy
from eqxformer.losses.objective import Answer, Question
from eqxformer.losses.tokens import NextToken

_CHUNK = 2048  # tokens whose logits exist at once


class NextTokenScores(Config):
    """Cross-entropy of each next token, and how often the likeliest one is right.

    `NextTokenScores()(model, batch)` is a `Loss`: plain cross-entropy, without what `NextToken`
    adds to it for training, and the metrics `cross_entropy`, the same, and `accuracy`. Of tokens
    that are equally likely, the one with the lowest id is the answer.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8)
        >>> model = config.build(key=jax.random.key(0))
        >>> scores = ef.NextTokenScores()(model, ef.TokenBatch(jnp.arange(18).reshape(2, 9)))
        >>> sorted(scores.means())
        ['accuracy', 'cross_entropy', 'loss']
    """

    def __call__(
        self, model: Any, batch: TokenBatch, /, *, key: PRNGKeyArray | None = None
    ) -> Loss:
        """The scores over a batch; a key switches dropout on."""
        question = NextToken().question(batch)
        answer = NextToken().answer(model, question, key=key)
        return _scores(answer, question)


def _scores(answer: Answer, question: Question) -> Loss:
    """The scores of hidden states, some tokens at a time, so that not all logits exist."""

    def of(hidden: Array, targets: Array, weights: Array) -> Loss:
        logits = answer.scored(hidden)
        loss = cross_entropy(logits, targets, weights=weights)
        right = jnp.where(logits.argmax(-1) == targets, weights, 0.0)
        return Loss(loss.total, loss.weight, {"cross_entropy": loss.total, "accuracy": right.sum()})

    hidden, targets, weights = answer.hidden, question.targets, question.weights
    rows = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1), weights.reshape(-1)
    count = chunk_count(len(rows[0]), _CHUNK)
    sums = jax.lax.map(lambda each: of(*each), tuple(dealt_out(x, count) for x in rows))
    return jax.tree.map(lambda x: x.sum(), sums)
