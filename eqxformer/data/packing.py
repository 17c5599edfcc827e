"""Packing: documents of any lengths in rows of one length, several in a row, each by itself.

A row's documents do not see one another and none predicts another's beginning, so that the loss
over packed rows is that over the documents one by one, without their padding. What the routers of a
mixture of experts add to it is a mean over whole rows, their padding included, unless `valid` of
the batches says where that is.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from eqxformer.data.batches import Data, StepBatches, TokenBatch
from eqxformer.data.documents import AnyDocuments, lengths_of
from eqxformer.data.fingerprints import digest, fingerprint_of
from eqxformer.data.share import Share


class Packing(Data):
    """Whole documents in rows of `length` tokens, in a new random order of rows each epoch.

    Every document is in exactly one row. Only one that is longer than a row is cut, every `length`
    tokens: the last token of a piece is the first of the next, so that each token but the first is
    predicted exactly once; a piece sees nothing of the one before it. What is left of a row is
    padding of weight 0.

    An epoch's end need not be a batch's end: batches go on into the next epoch, so that all have
    the same size and no row is left out. The order is Grain's, which computes the place of a row
    from its number and keeps no list.

    Arguments:
        length: tokens that the model reads at a time; a row holds one more, to predict.
        batch: rows in a batch.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> documents = [np.array([5, 6, 7]), np.array([8, 9]), np.array([10, 11, 12, 13])]
        >>> row = ef.Packing(length=5, batch=2).rows(documents)[0]
        >>> print(np.stack([row.tokens, row.segments, row.positions]))
        [[10 11 12 13  8  9]
         [ 1  1  1  1  2  2]
         [ 0  1  2  3  0  1]]
    """

    length: int
    batch: int

    def check(self) -> None:
        for name, value in (("length", self.length), ("batch", self.batch)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and the tokens read in each."""
        return self.batch, self.length

    def rows(self, documents: AnyDocuments) -> "PackedRows":
        """All rows, each a `TokenBatch` without an axis of the batch.

        Raises `ValueError` where the documents have no two tokens in a row to learn from.
        """
        return PackedRows(documents, packed(lengths_of(documents), self.length), self.length)

    def build(
        self, documents: AnyDocuments, *, seed: int = 0, share: Share = Share()
    ) -> StepBatches:
        """A function from the number of a step to its batch.

        Arguments:
            documents: token ids, each document an array; what `tokenized` gives, or `open` of
                `TokenFiles`.
            seed: what the order of the rows follows from.
            share: the part of every batch that is made here; all of it by default.
        """
        rows, own = self.rows(documents), range(self.batch)[share.rows(self.batch)]
        order = shuffled(len(rows), seed)

        def batch(step: int) -> TokenBatch:
            return _stacked([rows[order[step * self.batch + place]] for place in own])

        return StepBatches(
            batch, lambda: digest(self.to_dict(), seed, fingerprint_of(documents)), share
        )

    def once(self, documents: AnyDocuments) -> list[TokenBatch]:
        """Batches in which each row is exactly once, for validation; the last with empty rows."""
        rows = self.rows(documents)
        made = [rows[number] for number in range(len(rows))]
        made += [jax.tree.map(np.zeros_like, made[0])] * (-len(made) % self.batch)
        return [_stacked(made[i : i + self.batch]) for i in range(0, len(made), self.batch)]


class Plan(NamedTuple):
    """Which piece of which document is where: for each piece, in the order of the rows.

    `ends` says for each row behind which piece it ends.
    """

    document: Int[np.ndarray, " pieces"]
    start: Int[np.ndarray, " pieces"]
    size: Int[np.ndarray, " pieces"]
    ends: Int[np.ndarray, " rows"]


class PackedRows:
    """The rows of a plan: a sequence, and a source for Grain.

    `rows[i]` is a `TokenBatch` whose arrays are of shape `length + 1`.

    Arguments:
        documents: token ids.
        plan: which piece of which document is where.
        length: tokens that the model reads at a time.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> documents = [np.array([5, 6, 7]), np.array([8, 9]), np.array([10, 11, 12, 13])]
        >>> rows = ef.Packing(length=5, batch=2).rows(documents)
        >>> len(rows), rows[1].tokens.tolist()
        (2, [5, 6, 7, 0, 0, 0])
    """

    def __init__(self, documents: AnyDocuments, plan: Plan, length: int) -> None:
        if not (plan.size > 1).any():
            raise ValueError(
                f"There is nothing to predict in {len(documents)} documents: none has two tokens."
            )
        self.documents, self.plan, self.length = documents, plan, length

    def __len__(self) -> int:
        return len(self.plan.ends)

    def __getitem__(self, number: int, /) -> TokenBatch:
        first = int(self.plan.ends[number - 1]) if number else 0
        row = TokenBatch(
            np.zeros(self.length + 1, np.int32),
            np.zeros(self.length + 1, np.float32),
            np.zeros(self.length + 1, np.int32),
            np.zeros(self.length + 1, np.int32),
        )
        at = 0
        for segment, piece in enumerate(range(first, int(self.plan.ends[number])), start=1):
            document, start, size = (int(array[piece]) for array in self.plan[:3])
            here = slice(at, at + size)
            row.tokens[here] = self.documents[document][start : start + size]
            row.weights[here], row.segments[here] = 1.0, segment  # pyright: ignore[reportOptionalSubscript]
            row.positions[here] = np.arange(size)  # pyright: ignore[reportOptionalSubscript]
            at += size
        return row


def packed(lengths: Int[np.ndarray, " documents"], length: int) -> Plan:
    """Pieces of documents of so many tokens in few rows of `length + 1`, by best fit.

    The longest piece comes first, and each into the row that it fills best: with the least room
    left, among those with room enough: best-fit decreasing, which needs at most 11/9 of the fewest
    rows possible and four more (Johnson 1973). Nothing in it is drawn at random.
    """
    pieces = np.where(lengths > 0, np.maximum(1, -((1 - lengths) // length)), 0)
    document = np.repeat(np.arange(len(lengths)), pieces)
    start = length * (np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    size = np.minimum(length + 1, lengths[document] - start)
    order = np.argsort(-size, kind="stable")
    row = np.empty(len(size), np.int64)
    row[order] = _best_fit(size[order].tolist(), length + 1)
    order = order[np.argsort(row[order], kind="stable")]
    ends = np.cumsum(np.bincount(row)) if len(row) else np.zeros(0, np.int64)
    return Plan(document[order], start[order], size[order], ends)


def _best_fit(sizes: list[int], capacity: int) -> list[int]:
    """The row of each piece, the longest coming first."""
    chosen, rows = [], 0
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit `n` is set where a row has room for exactly `n`: the least is one look away
    for size in sizes:
        enough = rooms >> size
        if enough:
            room = size + (enough & -enough).bit_length() - 1
            row = with_room[room].pop()
            rooms ^= 0 if with_room[room] else 1 << room
        else:
            room, row, rows = capacity, rows, rows + 1
        if room > size:
            with_room[room - size].append(row)
            rooms |= 1 << (room - size)
        chosen.append(row)
    return chosen


def shuffled(count: int, seed: int) -> Any:
    """Numbers below `count`, each once an epoch, in an order that Grain computes place by place.

    `shuffled(count, seed)[place]` is one of them, for any place from 0 on; epoch `e` begins at
    place `e * count`. Raises `ImportError` where Grain is missing.
    """
    if seed < 0:
        raise ValueError(f"`seed` must be at least 0; got {seed}.")
    try:
        import grain
    except ImportError:
        raise ImportError("Shuffling needs grain: pip install 'eqxformer[train]'.") from None
    # Grain adds the epoch to the seed: of neighbouring seeds, one would repeat the other's epochs.
    (own,) = np.random.SeedSequence(seed).generate_state(1).tolist()
    return grain.MapDataset.range(count).seed(own).shuffle(own).repeat()


def _stacked(rows: list[TokenBatch]) -> TokenBatch:
    return jax.tree.map(lambda *arrays: np.stack(arrays), *rows)
