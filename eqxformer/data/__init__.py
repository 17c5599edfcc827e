"""Data: what one step learns from, and how batches are cut out of texts."""

from eqxformer.data.batches import PairBatch, TokenBatch
from eqxformer.data.characters import Characters
from eqxformer.data.feed import Feed, feed
from eqxformer.data.windows import Epochs, RandomWindows, Windows, consecutive

__all__ = [
    "Characters",
    "Epochs",
    "Feed",
    "PairBatch",
    "RandomWindows",
    "TokenBatch",
    "Windows",
    "consecutive",
    "feed",
]
