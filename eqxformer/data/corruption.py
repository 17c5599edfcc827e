"""What a model must restore: noise as a value, and batches of corrupted windows of a text.

All noise is drawn by NumPy from a generator that the caller gives, so that a batch is a pure
function of the seed and the number of the step.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from eqxformer.config import Config
from eqxformer.data.batches import Data, StepBatches
from eqxformer.data.fingerprints import digest, digest_of_array
from eqxformer.data.share import Share
from eqxformer.data.windows import Epochs, Tokens

# Behind the seed and the step: what numbers are for, since those of windows follow from these too.
_TRAINING, _VALIDATION = 1, 2

Rows = Int[np.ndarray, "rows seq"]
Real = Bool[np.ndarray, "rows seq"]


class Corruption(Config):
    """Noise: `corruption(tokens, valid, random=random)` is a batch to restore the tokens in.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> class Backwards(ef.Corruption):
        ...     def __call__(self, tokens, valid=None, *, random):
        ...         return ef.PairBatch(tokens[:, ::-1], tokens)
        >>> data = ef.CorruptedWindows(4, batch=2, corruption=Backwards())
        >>> data.build(np.arange(8))(0).source.tolist()
        [[3, 2, 1, 0], [7, 6, 5, 4]]
    """

    def __call__(
        self, tokens: Rows, valid: Real | None = None, *, random: np.random.Generator
    ) -> Any:
        """A batch of these rows.

        Arguments:
            tokens: the ids, a row per sequence.
            valid: False where a row is padding, on whichever side; all valid if None.
            random: what all noise is drawn from.
        """
        raise NotImplementedError(f"{self.type_name} must say how tokens are corrupted.")


class CorruptedWindows(Data):
    """Consecutive windows of a text in a new order each epoch, each with noise of its own.

    Every token is in exactly one window of an epoch; those at the end that fill none are left out.

    Arguments:
        length: tokens of a window.
        batch: windows in a batch.
        corruption: the noise, such as `MaskTokens(...)` or `SpanCorruption(...)`.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> data = ef.CorruptedWindows(20, batch=2, corruption=ef.MaskTokens(mask=99, vocab=99))
        >>> batches = data.build(np.arange(99), seed=0)
        >>> batches(7).tokens.shape, bool((batches(7).tokens == batches(7).tokens).all())
        ((2, 20), True)
    """

    length: int
    batch: int
    corruption: Corruption

    def check(self) -> None:
        for name, value, least in (("length", self.length, 2), ("batch", self.batch, 1)):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}; got {value}.")

    @property
    def shape(self) -> tuple[int, int]:
        """Windows, and the tokens of each."""
        return self.batch, self.length

    def build(self, tokens: Tokens, *, seed: int = 0, share: Share = Share()) -> StepBatches:
        """A function from the number of a step to its batch.

        Arguments:
            tokens: the text, which may be a mapped file.
            seed: what the order of the windows and their noise follow from.
            share: the part of every batch that is made here; all of it by default.
        """
        count, mine = self._count(tokens), share.rows(self.batch)
        windows = Epochs(length=self.length, batch=self.batch).order(count, seed)

        def batch(step: int) -> Any:
            places = windows(step)[:, None] * self.length + np.arange(self.length)[None]
            rows = tokens[places].astype(np.int32)
            random = np.random.default_rng((seed, step, _TRAINING))
            # Noise of all rows, so that those of one process are what they are in one batch.
            return jax.tree.map(lambda x: x[mine], self.corruption(rows, random=random))

        return StepBatches(
            batch, lambda: digest(self.to_dict(), seed, digest_of_array(tokens)), share
        )

    def spread(self, tokens: Tokens, *, most: int | None = None, seed: int = 0) -> list[Any]:
        """Batches for validation, the same whenever they are made: windows in their order.

        With `most`, only so many batches, of windows evenly spread over the text. As many as fill
        no batch are left out, unless they are all there is.
        """
        count = self._count(tokens)
        rows = tokens[: count * self.length].reshape(count, self.length)
        size = min(self.batch, count)
        batches = count // size if most is None else min(most, count // size)
        chosen = rows[np.linspace(0, count - 1, batches * size).astype(np.int64)].astype(np.int32)
        random = np.random.default_rng((seed, 0, _VALIDATION))
        return [self.corruption(each, random=random) for each in np.split(chosen, batches)]

    def _count(self, tokens: Tokens) -> int:
        """Windows of the text; `ValueError` for none."""
        if len(tokens) < self.length:
            raise ValueError(
                f"A text of {len(tokens)} tokens has no window of {self.length}; give a longer "
                "text or a smaller `length`."
            )
        return len(tokens) // self.length


def real_rows(tokens: Rows, valid: Real | None) -> Iterator[Int[np.ndarray, " real"]]:
    """The tokens of each row that are no padding."""
    for row, real in zip(tokens, real_places(tokens, valid), strict=True):
        yield row[real]


def real_places(tokens: Rows, valid: Real | None) -> Real:
    """Where rows are no padding: everywhere if `valid` is None.

    Raises `ValueError` for anything but true or false: ones and zeros would be taken for places.
    """
    if valid is None:
        return np.ones(tokens.shape, bool)
    if valid.shape != tokens.shape or valid.dtype != bool:
        raise ValueError(
            "`valid` must be true or false for every place of `tokens`, "
            f"{list(tokens.shape)}; got {valid.dtype}{list(valid.shape)}. Of ones and zeros, "
            "`valid == 1` makes it."
        )
    return valid


def padded(rows: list[np.ndarray], width: int, fill: int) -> tuple[Rows, Real]:
    """Rows of several lengths filled up on the right, and where they are real."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    filled = np.full((len(rows), width), fill, np.int32)
    real = np.arange(width)[None] < lengths[:, None]
    filled[real] = np.concatenate(rows) if rows else []
    return filled, real
