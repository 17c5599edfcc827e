"""BART's noise: a text is disturbed by any function of it, and is to be written as it was."""

import numpy as np
from jaxtyping import Int

from eqxformer.config import Config
from eqxformer.data.batches import PairBatch
from eqxformer.data.corruption import Corruption, Real, Rows, padded, real_rows

Row = Int[np.ndarray, " seq"]
Made = Int[np.ndarray, " made"]


class Noise(Config):
    """Something done to a text that makes it no longer: `noise(row, random)`.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> class WithoutLast(ef.Noise):
        ...     def __call__(self, row, random):
        ...         return row[:-1]
        >>> noise = ef.Denoising(noise=(WithoutLast(),), start=0, begin=None, end=1, fill=0)
        >>> noise(np.array([[5, 6, 7]]), random=np.random.default_rng(0)).source.tolist()
        [[5, 6, 1, 0]]
    """

    def __call__(self, row: Row, random: np.random.Generator) -> Made:
        """The text, disturbed."""
        raise NotImplementedError(f"{self.type_name} must say what it does to a text.")


class Infill(Noise):
    """Spans replaced by one mask each, however long they are (Lewis et al. 2020, section 2.2).

    Lengths are drawn from a Poisson distribution until `share` of the tokens are hidden, the last
    span cut down to that. A span of length 0 puts a mask where nothing is missing. Places are drawn
    evenly from all orders of spans and kept tokens.

    Arguments:
        mask: the id that stands for a span.
        share: of the tokens are hidden.
        mean: tokens of a span, on average.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> ef.Infill(mask=99)(np.arange(10), np.random.default_rng(0)).tolist()
        [99, 99, 1, 2, 3, 99, 6, 7, 8, 9]
    """

    mask: int
    share: float = 0.3
    mean: float = 3.0

    def check(self) -> None:
        if not 0.0 <= self.share <= 1.0 or self.mean <= 0.0:
            raise ValueError(
                "`share` must be from 0 to 1, and `mean` above 0; "
                f"got {self.share} and {self.mean}."
            )

    def __call__(self, row: Row, random: np.random.Generator) -> Made:
        hidden = round(self.share * len(row))
        lengths = self._lengths(hidden, random)
        # Kept tokens and spans in random order: -1 stands for a token that is kept.
        items = np.concatenate([np.full(len(row) - hidden, -1), lengths]).astype(np.int64)
        items = random.permutation(items)
        begins = np.cumsum(np.where(items < 0, 1, items)) - np.where(items < 0, 1, items)
        return np.where(items < 0, np.append(row, 0)[begins], self.mask).astype(row.dtype)

    def _lengths(self, hidden: int, random: np.random.Generator) -> list[int]:
        """Lengths that add up to `hidden`, no more of them than that."""
        lengths: list[int] = []
        while sum(lengths) < hidden and len(lengths) < hidden:
            lengths.append(min(int(random.poisson(self.mean)), hidden - sum(lengths)))
        if lengths:
            lengths[-1] += hidden - sum(lengths)
        return lengths


class PermuteSentences(Noise):
    """Sentences in random order (Lewis et al. 2020, section 2.2).

    A sentence goes up to and with a token of `ends`; what is behind the last of them is one more.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> noise = ef.PermuteSentences(ends=(0,))
        >>> noise(np.array([5, 6, 0, 7, 0, 8, 9]), np.random.default_rng(2)).tolist()
        [8, 9, 5, 6, 0, 7, 0]
    """

    ends: tuple[int, ...]

    def check(self) -> None:
        if not self.ends:
            raise ValueError("`ends` must name at least one id that ends a sentence; got ().")

    def __call__(self, row: Row, random: np.random.Generator) -> Made:
        sentences = np.split(row, np.flatnonzero(np.isin(row, self.ends)) + 1)
        order = random.permutation(len(sentences))
        return np.concatenate([sentences[number] for number in order])


class Denoising(Corruption):
    """A text disturbed by one kind of noise after the other, and the text as the target.

        source    <begin> disturbed text <end>
        target    <start> <begin> text <end>

    BART's is `(PermuteSentences(ends), Infill(mask))`. Source and target have the width of the
    rows, and the source is padded by what the noise has taken away.

    Arguments:
        noise: what is done to each text, in turn.
        start: the id that the decoder reads first.
        begin, end: ids before and behind a text, or None for none; noise leaves them alone.
        fill: the id of padding.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> disturb = ef.Denoising((ef.Infill(mask=99),), start=2, begin=0, end=2, fill=1)
        >>> batch = disturb(np.arange(10, 20)[None], random=np.random.default_rng(0))
        >>> batch.source.tolist()
        [[0, 99, 99, 11, 12, 13, 99, 16, 17, 18, 19, 2]]
        >>> batch.target.tolist()
        [[2, 0, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 2]]
    """

    noise: tuple[Noise, ...]
    start: int
    begin: int | None
    end: int | None
    fill: int

    def __call__(
        self, tokens: Rows, valid: Real | None = None, *, random: np.random.Generator
    ) -> PairBatch:
        """A batch of these rows."""
        rows = [np.asarray(row, np.int32) for row in real_rows(tokens, valid)]
        width = tokens.shape[1] + (self.begin is not None) + (self.end is not None)
        sources = [self._between(self._disturbed(row, random)) for row in rows]
        source, source_real = padded(sources, width, self.fill)
        targets = [np.concatenate([_ids(self.start), self._between(row)]) for row in rows]
        target, target_real = padded(targets, width + 1, self.fill)
        if valid is None:
            return PairBatch(source, target, source_real)
        some = np.any(valid, axis=1, keepdims=True)
        return PairBatch(source, target, source_real, target_real & some)

    def _disturbed(self, row: Row, random: np.random.Generator) -> Made:
        for noise in self.noise:
            made = noise(row, random)
            if len(made) > len(row):
                raise ValueError(
                    "Noise must not make a text longer, for batches of one shape; "
                    f"{noise.type_name} made {len(made)} tokens of {len(row)}."
                )
            row = made
        return row

    def _between(self, row: Row) -> Made:
        return np.concatenate([_ids(self.begin), row, _ids(self.end)])


def _ids(one: int | None) -> Made:
    return np.array([] if one is None else [one], np.int32)
