"""Prompts as they come, made into rows of few lengths, so that few programs serve them all."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Int

Ragged = Sequence[Sequence[int]]
Valid = Bool[Array, "rows seq"] | Bool[np.ndarray, "rows seq"]
Prompts = Int[Array, "rows seq"] | Int[np.ndarray, "rows seq"] | Ragged

SHORTEST = 16  # tokens of the smallest bucket
LONGEST = 1024  # tokens that are read in one pass; more are read in several


@dataclasses.dataclass(frozen=True)
class Rows:
    """Token ids from the left, without gaps: row `i` has `lengths[i]` of them, and zeros behind."""

    tokens: np.ndarray
    lengths: np.ndarray

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self.tokens.shape[0]

    @property
    def longest(self) -> int:
        """The most tokens of a row."""
        return int(self.lengths.max())

    def lists(self) -> list[list[int]]:
        """The tokens of every row."""
        pairs = zip(self.tokens, self.lengths, strict=True)
        return [row[:length].tolist() for row, length in pairs]

    def after(self, begin: int) -> "Rows":
        """What is left of every row from the place `begin` on, which may be nothing."""
        return Rows(self.tokens[:, begin:], np.clip(self.lengths - begin, 0, None))

    def padded(self, size: int) -> np.ndarray:
        """The tokens in rows of `size`."""
        tokens = self.tokens[:, :size]
        return np.pad(tokens, ((0, 0), (0, size - tokens.shape[1])))

    def valid(self, size: int) -> np.ndarray:
        """Which of `size` places hold a token."""
        return np.arange(size) < self.lengths[:, None]


def as_rows(prompts: Any, valid: Any, vocab: int) -> Rows:
    """Prompts as rows, from lists of any lengths, or an array with padding on either side.

    Raises `ValueError` for no prompt, an empty one, or an id outside the vocabulary.
    """
    if isinstance(prompts, (list, tuple)):
        if valid is not None:
            raise ValueError("`valid` is for an array of prompts; lists have their own lengths.")
        rows = _from_lists(prompts)
    else:
        rows = _from_array(prompts, valid)
    ids = rows.tokens[rows.valid(rows.tokens.shape[1])]
    wrong = ids[(ids < 0) | (ids >= vocab)]
    if wrong.size:
        raise ValueError(f"Token ids must be at least 0 and below {vocab}; got {wrong[0]}.")
    return Rows(rows.tokens.astype(np.int32), rows.lengths)


def bucket(length: int) -> int:
    """How many places are made for so many tokens to read: the next power of two, 16 at least."""
    return max(SHORTEST, 1 << (length - 1).bit_length())


def slots_for(length: int) -> int:
    """How many slots are made for so many tokens to hold: at most a quarter more, 64 at least.

    Example:
        >>> from eqxformer.generation.prompts import slots_for
        >>> [slots_for(length) for length in (5, 65, 200, 513, 1000)]
        [64, 80, 224, 640, 1024]
    """
    step = max(16, (1 << max(length - 1, 1).bit_length()) // 8)
    return max(64, -(-length // step) * step)


def passes(longest: int, chunk: int | None) -> list[tuple[int, int]]:
    """Where each pass over prompts begins, and how many places it has.

    Example:
        >>> from eqxformer.generation.prompts import passes
        >>> passes(50, None), passes(1100, None), passes(7, 3)
        ([(0, 64)], [(0, 1024), (1024, 128)], [(0, 3), (3, 3), (6, 3)])
    """
    if chunk is not None:
        if chunk < 1:
            raise ValueError(f"`chunk` must be positive; got {chunk}.")
        return [(begin, chunk) for begin in range(0, longest, chunk)]
    whole = longest // LONGEST * LONGEST
    found = [(begin, LONGEST) for begin in range(0, whole, LONGEST)]
    return found + ([(whole, bucket(longest - whole))] if longest > whole else [])


def _from_lists(prompts: Sequence[Any]) -> Rows:
    rows = [np.asarray(prompt) for prompt in prompts]
    if not rows:
        raise ValueError("`prompts` must have at least one prompt; got none.")
    for number, row in enumerate(rows):
        if row.ndim != 1 or (row.size and not np.issubdtype(row.dtype, np.integer)):
            raise ValueError(
                "`prompts` must be a list of lists of token ids; row "
                f"{number} is {prompts[number]!r}."
            )
        if not row.size:
            raise ValueError(f"Every prompt must have at least one token; row {number} is empty.")
    lengths = np.array([row.size for row in rows], np.int32)
    tokens = np.zeros((len(rows), lengths.max()), np.int64)
    for number, row in enumerate(rows):
        tokens[number, : row.size] = row
    return Rows(tokens, lengths)


def _from_array(prompts: Any, valid: Any) -> Rows:
    tokens = np.asarray(prompts)
    if tokens.ndim != 2 or 0 in tokens.shape or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            "`prompts` must be rows of at least one token id, or a list of lists of them; "
            f"got {tokens.dtype}{list(tokens.shape)}."
        )
    if valid is None:
        return Rows(tokens, np.full(tokens.shape[0], tokens.shape[1], np.int32))
    valid = np.asarray(valid)
    if valid.shape != tokens.shape or valid.dtype != bool or not valid.any(1).all():
        raise ValueError(
            f"`valid` must be true or false for every place of `prompts`, {list(tokens.shape)}, "
            f"with a real token in every row; got {valid.dtype}{list(valid.shape)}."
        )
    order = np.argsort(~valid, axis=1, kind="stable")
    real = np.take_along_axis(valid, order, 1)
    tokens = np.where(real, np.take_along_axis(tokens, order, 1), 0)
    return Rows(tokens, real.sum(1).astype(np.int32))
