"""T5's noise: spans of a text are cut out, and the answer says what stood in each place."""

import numpy as np
from jaxtyping import Bool, Int

from eqxformer.data.batches import PairBatch
from eqxformer.data.corruption import Corruption, Real, Rows, padded, real_rows

Row = Int[np.ndarray, " seq"]
Made = Int[np.ndarray, " made"]


class SpanCorruption(Corruption):
    """Random spans cut out, a sentinel in the place of each (Raffel et al. 2020, section 3.1.4).

    The target names every sentinel and what it stands for:

        text      thank you for inviting me to your party last week
        source    thank you <A> me to your party <B> week <end>
        target    <start> <A> for inviting <B> last <end>

    Of `n` tokens `round(density * n)` are noise, in `round(noise / mean)` spans. Lengths of the
    spans, and of the text between them, are drawn evenly from all that add up; a text begins with
    what is kept and ends with a span, and no two spans touch. A text of one token is not corrupted,
    and counts for nothing.

    Arguments:
        sentinel: the id of the first sentinel; the others count down from it (`<extra_id_0>`,
            `<extra_id_1>`, ... of T5's vocabulary).
        sentinels: how many there are.
        start: the id that the decoder reads first.
        end: the id that ends source and target, or None for none.
        density: share of the tokens that are noise.
        mean: tokens of a span, on average.
        fill: the id of padding.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> cut = ef.SpanCorruption(sentinel=99, start=0, end=1, density=0.3, mean=1.5)
        >>> batch = cut(np.arange(10, 20)[None], random=np.random.default_rng(0))
        >>> batch.source.tolist()
        [[10, 11, 12, 13, 14, 15, 99, 18, 98, 1]]
        >>> batch.target.tolist()
        [[0, 99, 16, 17, 98, 19, 1]]
    """

    sentinel: int
    start: int
    end: int | None
    sentinels: int = 100
    density: float = 0.15
    mean: float = 3.0
    fill: int = 0

    def check(self) -> None:
        if not 0.0 < self.density < 1.0 or self.mean < 1.0:
            raise ValueError(
                "`density` must be above 0 and below 1, and `mean` at least 1; "
                f"got {self.density} and {self.mean}."
            )
        if not 1 <= self.sentinels <= self.sentinel + 1:
            raise ValueError(
                "`sentinels` must be at least 1, and ids count down from `sentinel` to 0 at least; "
                f"got sentinels={self.sentinels}, sentinel={self.sentinel}."
            )

    def counts(self, length: int) -> tuple[int, int]:
        """How many tokens of a text are noise, and in how many spans."""
        noise = min(max(round(self.density * length), 1), length - 1)
        return noise, min(max(round(noise / self.mean), 1), noise, length - noise)

    def widths(self, length: int) -> tuple[int, int]:
        """Tokens of the source and of the target of a text, start and end included."""
        (noise, spans), ends = self.counts(length), self.end is not None
        return length - noise + spans + ends, 1 + noise + spans + ends

    def __call__(
        self, tokens: Rows, valid: Real | None = None, *, random: np.random.Generator
    ) -> PairBatch:
        """A batch of these rows; sources and targets are padded where the rows are."""
        length = tokens.shape[1]
        self._check_length(length)
        rows = [self._corrupted(row, random) for row in real_rows(tokens, valid)]
        source_width, target_width = self.widths(length)
        source, source_real = padded([source for source, _ in rows], source_width, self.fill)
        target, target_real = padded([target for _, target in rows], target_width, self.fill)
        if valid is None:
            return PairBatch(source, target)
        learned = target_real & (valid.sum(axis=1) > 1)[:, None]
        return PairBatch(source, target, source_real, learned)

    def _corrupted(self, row: Row, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        start, end = np.array([self.start]), np.array([] if self.end is None else [self.end], int)
        if len(row) < 2:
            return np.concatenate([row, end]), np.concatenate([start, end])
        noise = noise_spans(len(row), *self.counts(len(row)), random)
        source = np.concatenate([self._marked(row, noise), end])
        target = np.concatenate([start, self._marked(row, ~noise), end])
        return source, target

    def _marked(self, row: Row, hidden: Bool[np.ndarray, " seq"]) -> Made:
        """What is not hidden, and a sentinel for each span that is."""
        first = hidden & ~np.concatenate([[False], hidden[:-1]])
        marked = np.where(first, self.sentinel + 1 - np.cumsum(first), row)
        return marked[first | ~hidden]

    def _check_length(self, length: int) -> None:
        if length < 2:
            raise ValueError(f"A text must have at least 2 tokens to be cut; got {length}.")
        _, spans = self.counts(length)
        if spans > self.sentinels:
            raise ValueError(
                f"A text of {length} tokens has {spans} spans and there are {self.sentinels} "
                "sentinels; set `sentinels`, a larger `mean` or shorter texts."
            )


def noise_spans(
    length: int, noise: int, spans: int, random: np.random.Generator
) -> Bool[np.ndarray, " length"]:
    """True for `noise` of the tokens, in `spans` spans that no two touch, the last at the end."""
    kept, cut = parts(length - noise, spans, random), parts(noise, spans, random)
    lengths = np.stack([kept, cut], axis=1).reshape(-1)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def parts(total: int, count: int, random: np.random.Generator) -> Int[np.ndarray, " count"]:
    """`count` numbers of at least 1 that add up to `total`, every choice of them as likely."""
    ends = 1 + np.sort(random.choice(total - 1, count - 1, replace=False))
    return np.diff(np.concatenate([[0], ends, [total]]))
