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

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> ids = np.array([[5, 6, 7], [8, 9, 0]])
        >>> ef.Sentences(ids, valid=ids > 0).mask().valid.shape
        (2, 3)
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

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> questions = ef.Sentences(np.array([[5, 6], [7, 8]]))
        >>> answers = ef.Sentences(np.array([[5, 6, 9], [7, 8, 9]]))
        >>> ef.ContrastiveBatch(questions, answers).token_count
        10
    """

    anchors: Sentences
    positives: Sentences
    negatives: Sentences | None = None

    @property
    def token_count(self) -> int:
        """Tokens that the model reads, padding included."""
        parts = (self.anchors, self.positives, self.negatives)
        return sum(int(np.prod(part.tokens.shape)) for part in parts if part is not None)
