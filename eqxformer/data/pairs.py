"""Batches of pairs of texts, in a few shapes, each a pure function of the seed and the step.

Pairs of about the same length share a batch. Their widths are few, since each is a shape that a
step is compiled for, and are those under which the least is padding.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from eqxformer.data.batches import Data, PairBatch, StepBatches
from eqxformer.data.fingerprints import digest, digest_of_array
from eqxformer.data.parallel import ParallelText
from eqxformer.data.share import Share
from eqxformer.data.tokenizer import Tokenizer, encoded


class Rows(NamedTuple):
    """Sequences of ids of any lengths, one behind the other; row `i` is from `ends[i - 1]` on."""

    ids: Int[np.ndarray, " tokens"]
    ends: Int[np.ndarray, " rows"]

    @classmethod
    def of(cls, rows: Sequence[Int[np.ndarray, "_"]]) -> "Rows":
        """These sequences."""
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        return cls(np.concatenate([np.zeros(0, np.int32), *rows]).astype(np.int32), ends)

    @classmethod
    def joined(cls, several: Sequence["Rows"]) -> "Rows":
        """The rows of several, one after the other."""
        ids, lengths = ([getattr(rows, of) for rows in several] for of in ("ids", "lengths"))
        return cls(np.concatenate(ids), np.cumsum(np.concatenate(lengths), dtype=np.int64))

    @property
    def lengths(self) -> Int[np.ndarray, " rows"]:
        """How many ids each row has."""
        return np.diff(self.ends, prepend=0)

    def only(self, chosen: Bool[np.ndarray, " rows"]) -> "Rows":
        """Some of the rows."""
        lengths = self.lengths
        return Rows(self.ids[np.repeat(chosen, lengths)], np.cumsum(lengths[chosen]))

    def padded(
        self, rows: Int[np.ndarray, " chosen"], width: int, padding: int
    ) -> tuple[Int[np.ndarray, "chosen width"], Bool[np.ndarray, "chosen width"]]:
        """Some rows from the left, and which places hold an id; nothing but padding for row -1."""
        lengths = np.where(rows < 0, 0, self.lengths[rows])
        places = (self.ends[rows] - self.lengths[rows])[:, None] + np.arange(width)[None]
        valid = np.arange(width)[None] < lengths[:, None]
        ids = self.ids[np.where(valid, places, 0)]
        return np.where(valid, ids, padding).astype(np.int32), valid


class TokenPairs(NamedTuple):
    """Sources that end with the end, and targets between start and end, as ids.

    Arguments:
        lines: the number of each pair in its file, from 1 on.
        padding: the id behind the shorter ones.

    Example:
        >>> import eqxformer as ef
        >>> text = ef.ParallelText(("a dog", "a cat"), ("ein hund", "eine katze"))
        >>> tokenizer = ef.WordBPE(vocab=60).train([*text.source, *text.target])
        >>> pairs = ef.TokenPairs.of(text, tokenizer)
        >>> len(pairs.lines), int(pairs.source.ids[-1]) == tokenizer.end
        (2, True)
    """

    source: Rows
    target: Rows
    lines: Int[np.ndarray, " rows"]
    padding: int

    @classmethod
    def of(cls, text: ParallelText, tokenizer: Tokenizer) -> "TokenPairs":
        """The ids of parallel text.

        Raises `ValueError` for a tokenizer without an id for padding, start or end, or with the
        same one for padding and end: the end would then never be learned.
        """
        _ = _specials(tokenizer)  # says what is missing before anything is encoded
        source, target = (encoded(tokenizer, list(side)) for side in (text.source, text.target))
        return cls.framed(source, target, tokenizer)

    @classmethod
    def framed(
        cls,
        source: Sequence[Int[np.ndarray, "_"]],
        target: Sequence[Int[np.ndarray, "_"]],
        tokenizer: Tokenizer,
    ) -> "TokenPairs":
        """Ids of texts, with the special ones of the tokenizer set round them."""
        padding, start, end = _specials(tokenizer)
        first, last = np.array([start], np.int32), np.array([end], np.int32)
        return cls(
            Rows.of([np.concatenate([ids, last]) for ids in source]),
            Rows.of([np.concatenate([first, ids, last]) for ids in target]),
            np.arange(1, len(source) + 1),
            padding,
        )

    @classmethod
    def joined(cls, several: Sequence["TokenPairs"]) -> "TokenPairs":
        """All pairs of several, with one padding, one after the other."""
        source = Rows.joined([pairs.source for pairs in several])
        target = Rows.joined([pairs.target for pairs in several])
        lines = np.concatenate([pairs.lines for pairs in several])
        return cls(source, target, lines, several[0].padding)

    def digest(self) -> str:
        """SHA-256 of all ids and of where each pair is."""
        arrays = (*self.source, *self.target, self.lines)
        return digest(*map(digest_of_array, arrays), self.padding)

    @property
    def widths(self) -> Int[np.ndarray, " rows"]:
        """Tokens that are read, or predicted, of each pair: of its longer side."""
        return np.maximum(self.source.lengths, self.target.lengths - 1)

    def only(self, chosen: Bool[np.ndarray, " rows"]) -> "TokenPairs":
        """Some of the pairs."""
        source, target = (side.only(chosen) for side in (self.source, self.target))
        return self._replace(source=source, target=target, lines=self.lines[chosen])

    def batch(self, rows: Int[np.ndarray, " chosen"], width: int) -> PairBatch:
        """Some pairs as a batch; row -1 is padding that counts nowhere."""
        source, valid = self.source.padded(rows, width, self.padding)
        target, weights = self.target.padded(rows, width + 1, self.padding)
        return PairBatch(source, target, valid, weights)


class Pairs(Data):
    """How pairs are put into batches; `build(pairs, seed=seed)` is a function of the step.

    An epoch has every pair exactly once, in a new order each time. What is left over of a width
    goes into the next one; the last batch of the widest is filled up with rows that do not count.

    Arguments:
        tokens: tokens of a batch on one side, padding included: rows times width at most.
        buckets: how many widths there are at most.
        longest: tokens that a side may have at most, its end included.
        unfit: what is done with pairs that are longer, or empty on one side.
        even: rows of a batch are a multiple of this where there are as many: devices share them.

    Example:
        >>> import eqxformer as ef
        >>> text = ef.ParallelText(("a dog",) * 6, ("ein hund",) * 6)
        >>> tokenizer = ef.WordBPE(vocab=60).train([*text.source, *text.target])
        >>> data = ef.Pairs(tokens=16, longest=8, even=1)
        >>> pairs = data.fitting(ef.TokenPairs.of(text, tokenizer))
        >>> data.steps(pairs, epochs=1), data.build(pairs)(0).source.shape
        (2, (5, 3))
    """

    tokens: int = 2048
    buckets: int = 10
    longest: int = 128
    unfit: Literal["refuse", "drop"] = "refuse"
    even: int = 8

    def check(self) -> None:
        for name in ("tokens", "buckets", "longest", "even"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of the widest batch, and the tokens predicted in each."""
        return max(self._rows(self.longest), 1), self.longest

    @property
    def row_counts(self) -> frozenset[int]:
        """Rows of a batch of any width."""
        return frozenset(max(self._rows(width), 1) for width in range(1, self.longest + 1))

    def fitting(self, pairs: TokenPairs) -> TokenPairs:
        """The pairs that are not too long and not empty on one side.

        Raises `ValueError` that counts the others and names the first one's line, unless they are
        to be dropped; where no pair is left; and where the longest would fit into no batch.
        """
        if self.longest > self.tokens:
            raise ValueError(
                f"`longest` may be at most `tokens`, so that every pair fits into a batch; "
                f"got longest={self.longest}, tokens={self.tokens}."
            )
        fits = (pairs.widths <= self.longest) & (pairs.source.lengths > 1)
        fits &= pairs.target.lengths > 2
        if not fits.all() and self.unfit == "refuse":
            raise ValueError(
                f"{_unfit(pairs, fits, self.longest)}. Raise `data.longest`, or leave them out: "
                "--set data.unfit=drop"
            )
        if not fits.any():
            raise ValueError(f"No pair is left: of {len(fits):,}, all are longer or empty.")
        return pairs.only(fits)

    def build(self, pairs: TokenPairs, *, seed: int = 0, share: Share = Share()) -> StepBatches:
        """A function from the number of a step to its batch.

        Arguments:
            pairs: those to learn from, all of which fit.
            seed: what the order follows from.
            share: the part of every batch that is made here; all of it by default.

        Raises `ValueError` for pairs that are too long, and for none at all.
        """
        widths, steps = self._widths(pairs), self.steps(pairs, epochs=1)
        own = {width: share.rows(self._rows(width)) for width in widths}

        @functools.lru_cache(maxsize=2)
        def plan(epoch: int) -> list[tuple[int, np.ndarray]]:
            return self._plan(pairs, widths, np.random.default_rng((seed, epoch)))

        def batch(step: int) -> PairBatch:
            epoch, place = divmod(step, steps)
            width, rows = plan(epoch)[place]
            return pairs.batch(rows[own[width]], width)

        return StepBatches(batch, lambda: digest(self.to_dict(), seed, pairs.digest()), share)

    def steps(self, pairs: TokenPairs, epochs: int) -> int:
        """Steps after which `epochs` epochs are through; errors as in `build`."""
        return epochs * len(self._plan(pairs, self._widths(pairs), None))

    def in_turn(self, pairs: TokenPairs) -> list[PairBatch]:
        """Batches that have every pair exactly once, for validation; errors as in `build`."""
        plan = self._plan(pairs, self._widths(pairs), None)
        return [pairs.batch(rows, width) for width, rows in plan]

    def _widths(self, pairs: TokenPairs) -> tuple[int, ...]:
        """The widths of batches, into which all pairs must fit."""
        widths = pairs.widths
        if not len(widths):
            raise ValueError(
                "Batches need at least one pair; got none. Call `fitting` first, which says how "
                "many do not fit."
            )
        widest = int(np.argmax(widths))
        if widths[widest] > min(self.longest, self.tokens):
            raise ValueError(
                "No side of a pair may have more than `longest` tokens, or `tokens`; got "
                f"{widths[widest]:,} on line {pairs.lines[widest]:,}, longest={self.longest}, "
                f"tokens={self.tokens}. Call `fitting` first, which refuses or drops such pairs."
            )
        return best_widths(widths, self.buckets)

    def _plan(
        self, pairs: TokenPairs, widths: Sequence[int], random: np.random.Generator | None
    ) -> list[tuple[int, np.ndarray]]:
        """The batches of an epoch, as widths and rows: in order, or in a random one."""
        found, left = [], np.zeros(0, np.int64)
        bucket = np.searchsorted(np.array(widths), pairs.widths)
        for number, width in enumerate(widths):
            own = np.concatenate([left, np.flatnonzero(bucket == number)])
            own = own if random is None else random.permutation(own)
            rows, last = self._rows(width), number == len(widths) - 1
            full = len(own) // rows * rows
            found += [(width, part) for part in own[:full].reshape(-1, rows)]
            left = own[full:]
            if last and len(left):
                filled = np.concatenate([left, np.full(rows - len(left), -1)])
                found.append((width, filled))
        return found if random is None else [found[i] for i in random.permutation(len(found))]

    def _rows(self, width: int) -> int:
        rows = self.tokens // width
        return rows // self.even * self.even or rows


def best_widths(lengths: Int[np.ndarray, " rows"], count: int) -> tuple[int, ...]:
    """At most `count` widths that hold sequences of these lengths with the least padding.

    Every sequence goes into the narrowest width that holds it. Of all ways to choose `w_1 < w_2 <
    ...`, the one with the smallest sum of widths over all sequences, by dynamic programming.

    Example:
        >>> import numpy as np
        >>> from eqxformer.data.pairs import best_widths
        >>> best_widths(np.array([3, 3, 3, 4, 9, 10]), 2)
        (4, 10)
    """
    sizes, counts = np.unique(lengths, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    cost = np.concatenate([[0.0], np.full(len(sizes), np.inf)])  # of the first so many sizes
    choices = []
    for _ in range(min(count, len(sizes))):
        new, choice = np.full_like(cost, np.inf), np.zeros(len(cost), np.int64)
        for end in range(1, len(sizes) + 1):
            totals = cost[:end] + (below[end] - below[:end]) * sizes[end - 1]
            choice[end] = np.argmin(totals)
            new[end] = totals[choice[end]]
        choices.append(choice)
        cost = new
    widths, end = [], len(sizes)
    for choice in reversed(choices):
        widths.append(int(sizes[end - 1]))
        end = choice[end]
    return tuple(reversed(widths))


def _unfit(pairs: TokenPairs, fits: np.ndarray, longest: int) -> str:
    """How many pairs do not fit, and where the first is."""
    count, line = int((~fits).sum()), int(pairs.lines[np.argmin(fits)])
    what = "pair is" if count == 1 else "pairs are"
    return (
        f"{count:,} {what} longer than {longest} tokens or empty on one side, "
        f"the first on line {line:,}"
    )


def _specials(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """The ids of padding, start and end."""
    named = {name: getattr(tokenizer, name) for name in ("padding", "start", "end")}
    missing = [name for name, id in named.items() if id is None]
    if missing:
        raise ValueError(f"Pairs need a tokenizer with an id for {', '.join(missing)}.")
    padding, start, end = named.values()
    if padding == end:
        raise ValueError(
            f"Padding and end have the same id, {end}: what is padded does not count, and the end "
            "would never be learned. Give padding an id of its own."
        )
    return padding, start, end
