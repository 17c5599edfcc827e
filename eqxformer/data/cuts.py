"""Texts cut into pieces in more ways than one, so that rare words are learned by their parts."""

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from eqxformer.config import Config
from eqxformer.data.pairs import TokenPairs
from eqxformer.data.parallel import ParallelText
from eqxformer.data.subwords import Subwords
from eqxformer.data.tokenizer import Tokenizer


class BPEDropout(Config):
    """Words cut at random: of the merges that could be made next, each is left out at times.

    Provilkov et al. 2020, BPE-Dropout, algorithm 1. A word that byte pair encoding has as one token
    is now and then made of several, so that these are learned from it. It is for texts to learn
    from: what is asked of the model is cut as ever.

    Arguments:
        rate: how likely a merge is to be left out, each time that it could be made.
        ways: how often every text is there, each time cut anew. An epoch goes through all of them.

    Example:
        >>> import eqxformer as ef
        >>> text = ef.ParallelText(("lower and newer",) * 5, ("tiefer und neuer",) * 5)
        >>> tokenizer = ef.WordBPE(vocab=60).train([*text.source, *text.target])
        >>> pairs = ef.BPEDropout(rate=0.5, ways=3).pairs(text, tokenizer, seed=0)
        >>> len(pairs.lines), len(set(pairs.source.lengths.tolist())) > 1
        (15, True)
    """

    rate: float = 0.1
    ways: int = 10

    def check(self) -> None:
        if not 0.0 <= self.rate < 1.0:
            raise ValueError(f"`rate` must be at least 0 and below 1; got {self.rate}.")
        if self.ways < 1:
            raise ValueError(f"`ways` must be at least 1; got {self.ways}.")

    def pairs(self, text: ParallelText, tokenizer: Tokenizer, *, seed: int = 0) -> TokenPairs:
        """Parallel text as ids, `ways` times: all pairs cut in one way, then in the next.

        The same seed gives the same ids. Raises `ValueError` for a tokenizer that is not made of
        merges, and as `TokenPairs.of` does.
        """
        sources = self.cut(text.source, tokenizer, seed=2 * seed)
        targets = self.cut(text.target, tokenizer, seed=2 * seed + 1)
        both = zip(sources, targets, strict=True)
        several = [TokenPairs.framed(source, target, tokenizer) for source, target in both]
        return TokenPairs.joined(several)

    def cut(
        self, texts: Sequence[str], tokenizer: Tokenizer, *, seed: int = 0
    ) -> Iterator[list[Int[np.ndarray, "_"]]]:
        """The ids of all texts, without special ones, `ways` times."""
        merges = Merges.of(tokenizer)
        known: dict[str, int] = {}
        split = [[known.setdefault(p, len(known)) for p in merges.pieces(text)] for text in texts]
        lengths = np.array([len(pieces) for pieces in split], np.int64)
        pieces = np.array([piece for each in split for piece in each], np.int64)
        ids, ends = self._ways(merges, known, seed)
        for way in range(self.ways):
            chosen = np.random.default_rng((seed, way)).integers(self.ways, size=len(pieces))
            chosen += self.ways * pieces
            each = np.diff(ends, prepend=0)[chosen]
            starts = np.cumsum(each) - each
            places = np.arange(each.sum()) + np.repeat(ends[chosen] - each - starts, each)
            before = np.concatenate([[0], np.cumsum(each)])[np.cumsum(lengths)]
            yield np.split(ids[places], before[:-1])

    def _ways(
        self, merges: "Merges", pieces: dict[str, int], seed: int
    ) -> tuple[Int[np.ndarray, " ids"], Int[np.ndarray, " cuts"]]:
        """Each piece cut in so many ways, one behind the other: the ids, and where each ends."""
        cuts = []
        for piece in pieces:
            drawn = random.Random(f"{seed} {piece}")  # of the piece alone, whatever is beside it
            cuts += [merges.cut(piece, self.rate, drawn) for _ in range(self.ways)]
        ids = np.array([id for cut in cuts for id in cut], np.int32)
        return ids, np.cumsum([len(cut) for cut in cuts], dtype=np.int64)


class Merges(NamedTuple):
    """Byte pair encoding, as a tokenizer of the package tokenizers describes it.

    Arguments:
        tokenizer: what splits a text into the pieces within which merges are made.
        ids: of every token.
        ranks: of every merge, the first to be made being 0.
        unknown: the id of what is no token; None where there is nothing such.
    """

    tokenizer: Any
    ids: dict[str, int]
    ranks: dict[tuple[str, str], int]
    unknown: int | None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Merges":
        """Those of a tokenizer; `ValueError` for one of another kind."""
        told = json.loads(tokenizer.json) if isinstance(tokenizer, Subwords) else {}
        model = told.get("model", {})
        if model.get("type") != "BPE" or not isinstance(tokenizer, Subwords):
            raise ValueError(
                "Merges are left out of a tokenizer that makes some, as `ByteLevelBPE` and "
                f"`WordBPE` learn; got {model.get('type') or type(tokenizer).__name__}."
            )
        more = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "fuse_unk")
        if odd := [name for name in more if model.get(name)]:
            raise ValueError(f"A tokenizer with `{odd[0]}` cannot be cut in several ways.")
        pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
        ranks = {(left, right): rank for rank, (left, right) in enumerate(pairs)}
        return cls(tokenizer.tokenizer, model["vocab"], ranks, tokenizer.unknown)

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text, such as words."""
        normal, split = self.tokenizer.normalizer, self.tokenizer.pre_tokenizer
        text = text if normal is None else normal.normalize_str(text)
        if not text:
            return []
        return [text] if split is None else [p for p, _ in split.pre_tokenize_str(text)]

    def cut(self, piece: str, rate: float, drawn: random.Random) -> list[int]:
        """The ids of a piece: the first merge that is not left out is made, until there is none."""
        symbols = list(piece)
        while True:
            best: tuple[int, int] | None = None
            for place, pair in enumerate(itertools.pairwise(symbols)):
                rank = self.ranks.get(pair)
                if rank is None or (best is not None and rank >= best[0]):
                    continue
                if not rate or drawn.random() >= rate:
                    best = (rank, place)
            if best is None:
                break
            place = best[1]
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        found = (self.ids.get(symbol, self.unknown) for symbol in symbols)
        return [id for id in found if id is not None]
