"""What one training step learns from: token ids, and how much each of them counts."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from eqxformer.config import Config
from eqxformer.data.share import Share
from eqxformer.layers.masks import Padding, Segments

Ids = Int[Array, "*batch seq"] | Int[np.ndarray, "*batch seq"]
Weights = (
    Float[Array, "*batch seq"]
    | Float[np.ndarray, "*batch seq"]
    | Bool[Array, "*batch seq"]
    | Bool[np.ndarray, "*batch seq"]
)


class Data(Config):
    """How batches are made, as a value."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of a batch, and the tokens that are predicted in a row."""
        raise NotImplementedError(f"{self.type_name} must say how large its batches are.")

    @property
    def row_counts(self) -> frozenset[int]:
        """How many rows a batch may have; as many as `shape` says, unless told."""
        return frozenset({self.shape[0]})


class StepBatches:
    """The batches of a step, as a function of its number, and a fingerprint of all of them.

    `Data.build` makes one; `feed` takes the `fingerprint` from here, and of how many `shares` of
    each batch these are one.

    Arguments:
        make: what makes the batch of a step, given its number.
        fingerprint: what computes the fingerprint, when it is first asked for.
        share: the part of every batch that is made.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> batches = ef.Epochs(length=4, batch=2).build(np.arange(100), seed=0)
        >>> batches(3).tokens.shape, batches.shares, len(batches.fingerprint)
        ((2, 5), 1, 64)
    """

    def __init__(
        self, make: Callable[[int], Any], fingerprint: Callable[[], str], share: Share = Share()
    ) -> None:
        self._make, self._fingerprint, self.shares = make, fingerprint, share.count

    def __call__(self, step: int) -> Any:
        """The batch of this step, from 0 on."""
        return self._make(step)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the data and of how batches are made of them; all data are read for it."""
        return self._fingerprint()


class TokenBatch(eqx.Module):
    """Sequences for a decoder-only model.

    A model with a context of `n` tokens is trained on `n + 1`: it reads all but the last and is
    asked for all but the first.

    Arguments:
        tokens: the ids.
        weights: how much each token counts as a target; by default 1, and 0 where `valid` is False.
            0 for padding, and for a prompt that should be read but not learned.
        segments: for rows that hold several documents, which one a token is of. A token sees its
            own document alone, and the first token of a document is no target.
        positions: the place of each token in its document; counted from the start of a row if None.
        valid: False where the tokens are padding, on whichever side. Padding behind the text needs
            no more than weights of 0, since nothing sees it; but of a mixture of experts, the
            routers' losses are means over all tokens read, and only `valid` leaves padding out.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> ids, real = np.array([[5, 6, 7, 0]]), np.array([[True, True, True, False]])
        >>> batch = ef.TokenBatch(ids, weights=real)
        >>> batch.token_count, batch.target_weights().tolist()
        (3, [[1.0, 1.0, 0.0]])
    """

    tokens: Ids
    weights: Weights | None = None
    segments: Ids | None = None
    positions: Ids | None = None
    valid: Bool[Array, "*batch seq"] | Bool[np.ndarray, "*batch seq"] | None = None

    @property
    def token_count(self) -> int:
        """Tokens that the model reads."""
        *batch, seq = self.tokens.shape
        return int(np.prod(batch)) * (seq - 1)

    def target_weights(self) -> Float[Array, "*batch targets"]:
        """How much each token but the first counts; 0 where a document begins."""
        counts = self.valid if self.weights is None else self.weights
        weights = weights_of(counts, self.tokens)[..., 1:]
        if self.segments is None:
            return weights
        before, here = shifted(self.segments)
        return jnp.where(before == here, weights, 0.0)

    def context(self) -> dict[str, Any]:
        """The `mask` and `positions` of what a model reads, as far as there are any."""
        given: dict[str, Any] = {}
        if self.segments is not None:
            given["mask"] = Segments(shifted(self.segments)[0])
        if self.valid is not None:
            padding = Padding(jnp.asarray(self.valid)[..., :-1])
            given["mask"] = given["mask"] & padding if "mask" in given else padding
        if self.positions is not None:
            given["positions"] = shifted(self.positions)[0]
        return given


class PairBatch(eqx.Module):
    """Source and target sequences for an encoder-decoder.

    Arguments:
        source: the ids that the encoder reads.
        target: the ids of the answer, behind a start token.
        source_valid: False where the source is padding; all valid by default.
        target_weights: how much each target token counts, 1 for all by default.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> source, target = np.array([[5, 6, 7], [8, 0, 0]]), np.array([[1, 9, 2], [1, 3, 2]])
        >>> batch = ef.PairBatch(source, target, source_valid=source > 0)
        >>> batch.token_count, batch.source_mask().valid.shape
        (10, (2, 3))
    """

    source: Int[Array, "*batch source"] | Int[np.ndarray, "*batch source"]
    target: Ids
    source_valid: Bool[Array, "*batch source"] | Bool[np.ndarray, "*batch source"] | None = None
    target_weights: Weights | None = None

    def source_mask(self) -> Padding | None:
        """The mask over the source as a description, None when all of it is valid."""
        return None if self.source_valid is None else Padding(jnp.asarray(self.source_valid))

    @property
    def token_count(self) -> int:
        """Tokens that the encoder and the decoder read."""
        *batch, seq = self.target.shape
        return int(np.prod(batch)) * (self.source.shape[-1] + seq - 1)


def shifted(tokens: Ids) -> tuple[Int[Array, "*batch prefix"], Int[Array, "*batch prefix"]]:
    """All tokens but the last, and for each of them the one that follows."""
    if tokens.shape[-1] < 2:
        raise ValueError(
            f"A sequence must hold at least 2 tokens, one to read and one to predict; "
            f"got {tokens.shape[-1]}."
        )
    ids = jnp.asarray(tokens)
    return ids[..., :-1], ids[..., 1:]


def weights_of(weights: Weights | None, tokens: Ids) -> Float[Array, "*batch seq"]:
    """`weights` in float32, ones when there are none."""
    if weights is None:
        return jnp.ones(tokens.shape, jnp.float32)
    weights = jnp.asarray(weights).astype(jnp.float32)
    check_weights_shape(weights.shape, tokens.shape)
    return weights


def check_weights_shape(weights: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raises `ValueError` for weights that are not one for each of what they weigh.

    Of others, the sum of the weights would be that of fewer, and the mean wrong by a factor.
    """
    if weights != wanted:
        raise ValueError(
            f"Weights must have the shape {wanted}, one for each token or label; got {weights}. "
            f"Spread what rows share with `jnp.broadcast_to(weights, {wanted})`."
        )
