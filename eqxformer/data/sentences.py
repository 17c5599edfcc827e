"""Sentences, and which of them belong together."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from eqxformer.layers.masks import Padding


class Sentences(eqx.Module):
    """Sentences to embed.

    Arguments:
        tokens: the ids.
        valid: False where the tokens are padding; all valid by default.
    """

    tokens: Int[Array, "*batch seq"] | Int[np.ndarray, "*batch seq"]
    valid: Bool[Array, "*batch seq"] | Bool[np.ndarray, "*batch seq"] | None = None

    def mask(self) -> Padding | None:
        """The mask as a description, None when all is valid."""
        return None if self.valid is None else Padding(jnp.asarray(self.valid))


class ContrastiveBatch(eqx.Module):
    """Sentences that belong together, row by row.

    Arguments:
        anchors: the sentences that are asked with, `rows seq`.
        positives: what belongs to each, `rows seq`; the rows of the others are what does not.
        negatives: more that does not belong to each, though it looks like it, `rows count seq`.
    """

    anchors: Sentences
    positives: Sentences
    negatives: Sentences | None = None

    @property
    def token_count(self) -> int:
        """Tokens that the model reads, padding included."""
        parts = (self.anchors, self.positives, self.negatives)
        return sum(int(np.prod(part.tokens.shape)) for part in parts if part is not None)
