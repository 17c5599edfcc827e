"""Sequences with a label each, or one for every token."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from eqxformer.data.batches import Ids, check_weights_shape
from eqxformer.layers.masks import Padding

Valid = Bool[Array, "*batch seq"] | Bool[np.ndarray, "*batch seq"]
Labels = Num[Array, "*labels"] | Num[np.ndarray, "*labels"]
Shares = (
    Float[Array, "*labels"]
    | Float[np.ndarray, "*labels"]
    | Bool[Array, "*labels"]
    | Bool[np.ndarray, "*labels"]
)


class LabelledBatch(eqx.Module):
    """Sequences and their labels, for an encoder with a head.

    Arguments:
        tokens: the ids, `*batch seq`.
        labels: a class per sequence, `*batch`, or per token, `*batch seq`; or the numbers to
            predict of each sequence, `*batch values`.
        weights: how much each label counts. By default 1, and 0 for classes below 0, such as -100,
            which are none, and for the classes of padding.
        valid: False where the tokens are padding; all valid by default.
        types: the type (segment) of every token, as in a pair of sentences; all 0 by default.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> ids, classes = np.array([[5, 6, 7], [8, 9, 0]]), np.array([[-100, 2, 1], [2, 2, 0]])
        >>> batch = ef.LabelledBatch(ids, classes, valid=ids > 0)
        >>> batch.token_count, batch.label_weights().tolist()
        (6, [[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    """

    tokens: Ids
    labels: Labels
    weights: Shares | None = None
    valid: Valid | None = None
    types: Ids | None = None

    def options(self) -> dict[str, Array | Padding]:
        """What a model is told beside the tokens: its mask and the types, where there are any."""
        told: dict[str, Array | Padding] = {}
        if self.valid is not None:
            told["mask"] = Padding(jnp.asarray(self.valid))
        if self.types is not None:
            told["types"] = jnp.asarray(self.types)
        return told

    def label_weights(self) -> Float[Array, "*labels"]:
        """How much each label counts, in float32."""
        if self.weights is not None:
            weights = jnp.asarray(self.weights).astype(jnp.float32)
            check_weights_shape(weights.shape, self.labels.shape)
            return weights
        if not jnp.issubdtype(self.labels.dtype, jnp.integer):
            return jnp.ones(self.labels.shape, jnp.float32)
        counted = jnp.asarray(self.labels) >= 0
        if self.valid is not None and self.labels.shape == self.tokens.shape:
            counted &= jnp.asarray(self.valid)
        return counted.astype(jnp.float32)

    @property
    def token_count(self) -> int:
        """Tokens that the model reads, padding included."""
        return int(np.prod(self.tokens.shape))
