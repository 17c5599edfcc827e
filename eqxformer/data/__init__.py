"""Data: what one step learns from, and how batches are cut out of texts."""

from eqxformer.data.batches import PairBatch, TokenBatch
from eqxformer.data.characters import Characters
from eqxformer.data.feed import Feed, feed
from eqxformer.data.pairs import Pairs, TokenPairs
from eqxformer.data.parallel import ParallelFiles, ParallelText
from eqxformer.data.subwords import ByteLevelBPE, Subwords, Unigram, WordBPE
from eqxformer.data.tokenizer import Tokenizer
from eqxformer.data.windows import Epochs, RandomWindows, Windows, consecutive

__all__ = [
    "ByteLevelBPE",
    "Characters",
    "Epochs",
    "Feed",
    "PairBatch",
    "Pairs",
    "ParallelFiles",
    "ParallelText",
    "RandomWindows",
    "Subwords",
    "TokenBatch",
    "TokenPairs",
    "Tokenizer",
    "Unigram",
    "Windows",
    "WordBPE",
    "consecutive",
    "feed",
]
