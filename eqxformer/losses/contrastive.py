"""Sentence embeddings: what belongs together lies near, everything else in the batch far."""

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqxformer.data.sentences import ContrastiveBatch, Sentences
from eqxformer.keys import split
from eqxformer.losses.cross_entropy import Loss, cross_entropy
from eqxformer.losses.objective import Objective


class Contrastive(Objective):
    """InfoNCE over a batch: `cross_entropy(cos(a, p) / temperature, own)`.

    Van den Oord et al. 2018. Each anchor picks its own positive among those of all rows, and the
    hard negatives of all rows. The model needs `embed`; vectors are brought to unit length here.

    Arguments:
        temperature: what cosines are divided by; 0.05 is usual for sentences (Gao et al. 2021).
        directions: `both` also lets each positive pick its own anchor, and takes the mean of the
            two (Radford et al. 2021).

    The metric `accuracy` is the share of anchors that pick their own. Rows depend on one another,
    so that a batch cannot be split into microbatches. With the same sentences on both sides, and
    dropout on, it is SimCSE.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> config = ef.families.bert(vocab=65, dim=16, layers=1, heads=2, hidden=32)
        >>> model, tokens = config.build(key=jax.random.key(0)), jnp.arange(12).reshape(3, 4)
        >>> batch = ef.ContrastiveBatch(ef.Sentences(tokens), ef.Sentences(tokens))
        >>> float(ef.Contrastive()(model, batch).weight)
        3.0
    """

    temperature: float = 0.05
    directions: Literal["forth", "both"] = "forth"

    def check(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError(f"`temperature` must be above 0; got {self.temperature}.")

    @property
    def splits(self) -> bool:
        """No: the rows of a batch are each other's negatives."""
        return False

    def __call__(
        self, model: Any, batch: ContrastiveBatch, /, *, key: PRNGKeyArray | None = None
    ) -> Loss:
        """The loss over a batch; a key switches dropout on, other for each of the parts."""
        keys = split(key, 3)
        anchors = embedded(model, batch.anchors, key=keys[0])
        positives = embedded(model, batch.positives, key=keys[1])
        candidates = positives
        if batch.negatives is not None:
            negatives = embedded(model, batch.negatives, key=keys[2])
            negatives = negatives.reshape(-1, negatives.shape[-1])
            candidates = jnp.concatenate([positives, negatives])
        own = jnp.arange(anchors.shape[0])
        scores = anchors @ candidates.T / self.temperature
        loss = cross_entropy(scores, own)
        total = loss.total
        if self.directions == "both":
            back = cross_entropy(positives @ anchors.T / self.temperature, own)
            total = (total + back.total) / 2.0
        right = jnp.sum((jnp.argmax(scores, axis=-1) == own).astype(jnp.float32))
        return Loss(total, loss.weight, {"accuracy": right})


def embedded(
    model: Any, sentences: Sentences, *, key: PRNGKeyArray | None = None
) -> Float[Array, "*batch dim"]:
    """A vector of unit length for each sentence, in float32."""
    tokens = jnp.asarray(sentences.tokens)
    vectors = model.embed(tokens, mask=sentences.mask(), key=key).astype(jnp.float32)
    square = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors / jnp.sqrt(jnp.maximum(square, 1e-24))
