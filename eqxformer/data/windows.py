"""Windows of a long text as batches, each a pure function of the seed and the number of the step.

`Epochs` cuts the text without gaps: the last token of a window is the first of the next, so that
each token but the first is predicted exactly once in an epoch. `RandomWindows` begin anywhere.
"""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Int, Integer

from eqxformer.data.batches import Data, StepBatches, TokenBatch
from eqxformer.data.fingerprints import digest, digest_of_array
from eqxformer.data.share import Share

Tokens = Integer[np.ndarray, " tokens"]


class Windows(Data):
    """How batches are cut out of a text; `build(tokens, seed=seed)` is a function of the step.

    Arguments:
        length: tokens that the model reads at a time; a window holds one more, to predict.
        batch: windows in a batch.

    One of your own defines `starts`.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> class OneAfterTheOther(ef.Windows):
        ...     def starts(self, tokens, seed):
        ...         places = np.arange(self.batch) * self.length
        ...         return lambda step: places + step * self.batch * self.length
        >>> OneAfterTheOther(length=3, batch=2).build(np.arange(100))(1).tokens.tolist()
        [[6, 7, 8, 9], [9, 10, 11, 12]]
    """

    length: int
    batch: int

    def check(self) -> None:
        for name, value in (("length", self.length), ("batch", self.batch)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")

    @property
    def shape(self) -> tuple[int, int]:
        """Windows, and the tokens predicted in each."""
        return self.batch, self.length

    def build(self, tokens: Tokens, *, seed: int = 0, share: Share = Share()) -> StepBatches:
        """A function from the number of a step to its batch.

        Arguments:
            tokens: the text, which may be a mapped file: only what a batch holds is read of it.
            seed: what the order of the windows follows from.
            share: the part of every batch that is made here; all of it by default.
        """
        check_enough(tokens, self.length)
        rows = share.rows(self.batch)
        starts = self.starts(tokens, seed)

        def batch(step: int) -> TokenBatch:
            return TokenBatch(cut(tokens, starts(step)[rows], self.length).astype(np.int32))

        return StepBatches(
            batch, lambda: digest(self.to_dict(), seed, digest_of_array(tokens)), share
        )

    def starts(self, tokens: Tokens, seed: int) -> Callable[[int], Int[np.ndarray, " batch"]]:
        """A function from the number of a step to where its windows begin."""
        raise NotImplementedError(f"{type(self).__name__} must say which windows a batch has.")


class RandomWindows(Windows):
    """Windows that begin anywhere, drawn independently for every step.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> batches = ef.RandomWindows(length=4, batch=2).build(np.arange(100), seed=0)
        >>> batches(7).tokens.shape, bool((batches(7).tokens == batches(7).tokens).all())
        ((2, 5), True)
    """

    def starts(self, tokens: Tokens, seed: int) -> Callable[[int], Int[np.ndarray, " batch"]]:
        """Any places, drawn anew for every step."""

        def of_step(step: int) -> Int[np.ndarray, " batch"]:
            random = np.random.default_rng((seed, step))
            return random.integers(0, len(tokens) - self.length, self.batch)

        return of_step


class Epochs(Windows):
    """Consecutive windows in a new random order each epoch; every one exactly once.

    An epoch's end need not be a batch's end: batches go on into the next epoch, so that all have
    the same size and none is dropped. The last tokens that fill no window are left out.

    Arguments:
        length: tokens that the model reads at a time; a window holds one more, to predict.
        batch: windows in a batch.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> windows, text = ef.Epochs(length=3, batch=2), np.arange(13)
        >>> windows.count(text), windows.steps(text, epochs=1)
        (4, 2)
        >>> windows.build(text, seed=0)(0).tokens.tolist()
        [[6, 7, 8, 9], [0, 1, 2, 3]]
    """

    def count(self, tokens: Tokens) -> int:
        """Windows in an epoch."""
        return (len(tokens) - 1) // self.length

    def steps(self, tokens: Tokens, epochs: int) -> int:
        """Steps after which `epochs` epochs are through."""
        return -(-epochs * self.count(tokens) // self.batch)

    def starts(self, tokens: Tokens, seed: int) -> Callable[[int], Int[np.ndarray, " batch"]]:
        """The next of the epoch's windows in their order of the epoch."""
        chosen = self.order(self.count(tokens), seed)
        return lambda step: chosen(step) * self.length

    def order(self, windows: int, seed: int) -> Callable[[int], Int[np.ndarray, " batch"]]:
        """A function from the number of a step to which of so many windows a batch has."""

        @functools.lru_cache(maxsize=2)
        def order(epoch: int) -> Int[np.ndarray, " windows"]:
            return np.random.default_rng((seed, epoch)).permutation(windows)

        def of_step(step: int) -> Int[np.ndarray, " batch"]:
            places = np.arange(step * self.batch, (step + 1) * self.batch)
            epochs, places = np.divmod(places, windows)
            chosen = np.empty(self.batch, np.int64)
            for epoch in np.unique(epochs):
                here = epochs == epoch
                chosen[here] = order(int(epoch))[places[here]]
            return chosen

        return of_step


def consecutive(
    tokens: Tokens, *, length: int, batch: int, most: int | None = None
) -> list[TokenBatch]:
    """Batches in which every token but the first is predicted exactly once, for validation.

    All have the same shape; what is missing at the end is filled up with weight 0. With `most`,
    only so many batches, made of windows evenly spread over the text.

    Arguments:
        tokens: the text.
        length: tokens that are predicted in a window.
        batch: windows in a batch.
        most: how many batches there are at most; None for all.

    Raises `ValueError` for a text of fewer than two tokens.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> batches = ef.consecutive(np.arange(8), length=3, batch=2)
        >>> [batch.tokens.tolist() for batch in batches]
        [[[0, 1, 2, 3], [3, 4, 5, 6]], [[6, 7, 0, 0], [0, 0, 0, 0]]]
    """
    check_enough(tokens, 1)
    tokens = tokens.astype(np.int32)
    starts = np.arange(0, len(tokens) - 1, length)
    if most is not None and len(starts) > most * batch:
        starts = starts[np.linspace(0, len(starts) - 1, most * batch).astype(np.int64)]
    starts = np.concatenate([starts, np.full(-len(starts) % batch, len(tokens))])
    padded = np.concatenate([tokens, np.zeros(length + 1, tokens.dtype)])
    real = np.arange(len(padded)) < len(tokens)
    return [
        TokenBatch(cut(padded, rows, length), cut(real, rows, length))
        for rows in starts.reshape(-1, batch)
    ]


def cut(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """`length + 1` tokens from each start on, one row each."""
    return tokens[starts[:, None] + np.arange(length + 1)[None]]


def check_enough(tokens: Tokens, length: int) -> None:
    """Raises `ValueError` where not even one window fits, `TypeError` for what is no array."""
    if not isinstance(tokens, np.ndarray):
        raise TypeError(
            f"`tokens` must be an array of ids; got {type(tokens).__name__}. "
            "Take `.tokens` of documents, or `np.array` of a list."
        )
    if len(tokens) <= length:
        raise ValueError(
            f"A text of {len(tokens)} tokens has no window of {length} + 1; "
            f"give a longer text or a smaller `length`."
        )
