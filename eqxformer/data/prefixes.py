"""Sequences of which the first tokens are read and the rest is learned: prefix language models."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from eqxformer.data.batches import Ids, Weights, weights_of
from eqxformer.data.corruption import Corruption, Real, Rows, real_places
from eqxformer.layers.masks import Mask, Padding, Prefix


class PrefixBatch(eqx.Module):
    """Sequences for a decoder, each with a prefix that it sees both ways and does not learn.

    Arguments:
        tokens: the ids, prefix first.
        prefix: how many places of each row are the prefix, with the padding before it.
        weights: how much each token behind the prefix counts as a target; by default 1, and 0 for
            padding.
        valid: False where the tokens are padding; all valid by default.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> batch = ef.PrefixBatch(np.array([[5, 6, 7, 8]]), prefix=np.array([2]))
        >>> batch.target_weights().tolist()
        [[0.0, 0.0, 1.0, 1.0]]
    """

    tokens: Ids
    prefix: Int[Array, "*batch"] | Int[np.ndarray, "*batch"]
    weights: Weights | None = None
    valid: Bool[Array, "*batch seq"] | Bool[np.ndarray, "*batch seq"] | None = None

    def mask(self) -> Mask:
        """Who may look at whom among the tokens that are read: all but the last."""
        prefix = Prefix(jnp.asarray(self.prefix))
        return prefix if self.valid is None else prefix & Padding(jnp.asarray(self.valid)[..., :-1])

    def target_weights(self) -> Float[Array, "*batch seq"]:
        """How much each token counts as a target: 0 for those of the prefix."""
        counts = self.valid if self.weights is None else self.weights
        weights = weights_of(counts, self.tokens)
        places = jnp.broadcast_to(jnp.arange(self.tokens.shape[-1]), self.tokens.shape)
        return jnp.where(places >= jnp.asarray(self.prefix)[..., None], weights, 0.0)

    @property
    def token_count(self) -> int:
        """Tokens that the model reads."""
        *batch, seq = self.tokens.shape
        return int(np.prod(batch)) * (seq - 1)


class SplitAnywhere(Corruption):
    """A prefix that ends anywhere in a row, each place as likely (Raffel et al. 2020, 3.2.1).

    At least one token is prefix and one is not.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> rows = np.arange(12).reshape(2, 6)
        >>> batch = ef.SplitAnywhere()(rows, random=np.random.default_rng(0))
        >>> batch.prefix.tolist()
        [5, 4]
    """

    def __call__(
        self, tokens: Rows, valid: Real | None = None, *, random: np.random.Generator
    ) -> PrefixBatch:
        """A batch of these rows, each with a prefix."""
        real = real_places(tokens, valid)
        begin = np.argmax(real, axis=1)
        longest = np.maximum(real.sum(axis=1) - 1, 1)  # what a row of one token has is not learned
        prefix = begin + 1 + random.integers(0, longest)
        return PrefixBatch(tokens, prefix.astype(np.int32), None, valid)
