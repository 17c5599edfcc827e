"""Data: what one step learns from, and how batches are cut out of texts."""

from eqxformer.data.batches import PairBatch, TokenBatch
from eqxformer.data.characters import Characters
from eqxformer.data.windows import Epochs, RandomWindows, Windows, consecutive

__all__ = [
    "Characters",
    "Epochs",
    "PairBatch",
    "RandomWindows",
    "TokenBatch",
    "Windows",
    "consecutive",
]
