"""rot13: an encoder-decoder learns to move every letter of a word by thirteen places."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int

from eqxformer.config import Config
from eqxformer.training.batches import PairBatch

END, START, LETTERS = 0, 1, 2  # ids: the end of a word and all behind it, the start, the letter a
TEST_SEED = 13
SHOWN = ("hey", "there", "ma", "dood")

Words = Int[np.ndarray, "words letters"]


class RandomWords(Config):
    """Random words of 1 to `longest` letters and what rot13 makes of them, `batch` in a batch."""

    longest: int = 15
    batch: int = 50

    def check(self) -> None:
        if self.longest < 3 or self.batch < 1:
            raise ValueError(
                f"`longest` must be at least 3 and `batch` at least 1; "
                f"got longest={self.longest}, batch={self.batch}."
            )

    def draw(self, random: np.random.Generator, count: int) -> Words:
        """Ids of words of every length alike, each followed by at least one `END`."""
        letters = random.integers(LETTERS, LETTERS + 26, (count, self.longest + 1))
        lengths = random.integers(1, self.longest + 1, (count, 1))
        return np.where(np.arange(self.longest + 1)[None] < lengths, letters, END).astype(np.int32)

    def unseen(self, count: int) -> Words:
        """Different words to test with, always the same; training never shows one of them."""
        random, found = np.random.default_rng(TEST_SEED), np.zeros((0, self.longest + 1), np.int32)
        while len(found) < count:
            found = np.unique(np.concatenate([found, self.draw(random, count)]), axis=0)
            found = random.permutation(found)
        return found[:count]

    def build(self, unseen: Words, *, seed: int = 0) -> Callable[[int], PairBatch]:
        """A function from the number of a step to a batch without any of the `unseen` words."""
        kept_back = _spelled(unseen)

        def batch(step: int) -> PairBatch:
            random = np.random.default_rng((seed, step))
            words = self.draw(random, self.batch)
            while (known := np.isin(_spelled(words), kept_back)).any():
                words[known] = self.draw(random, int(known.sum()))
            return pairs(words)

        return batch


def pairs(words: Words) -> PairBatch:
    """Words and their rot13 as a batch; of all that is no letter only the first `END` counts."""
    answers = np.where(words == END, END, (words - LETTERS + 13) % 26 + LETTERS)
    target = np.concatenate([np.full((len(words), 1), START), answers], axis=1).astype(np.int32)
    valid = up_to_end(words)
    weights = np.concatenate([np.ones((len(words), 1), bool), valid], axis=1)
    return PairBatch(words, target, valid, weights)


def up_to_end(words: Words) -> Bool[np.ndarray, "words letters"]:
    """True for the letters of each word and for the first `END` behind them."""
    return np.cumsum(words == END, axis=1) <= 1


def _spelled(words: Words) -> np.ndarray:
    return np.ascontiguousarray(words.astype(np.uint8)).view(f"S{words.shape[1]}")[:, 0]
