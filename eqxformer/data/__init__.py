"""Data: what one step learns from, and how batches are cut out of texts."""

from eqxformer.data.batches import PairBatch, TokenBatch
from eqxformer.data.characters import Characters
from eqxformer.data.corruption import CorruptedWindows, Corruption
from eqxformer.data.denoising import Denoising, Infill, Noise, PermuteSentences
from eqxformer.data.feed import Feed, feed
from eqxformer.data.labelled import LabelledBatch
from eqxformer.data.masking import MaskTokens
from eqxformer.data.preferences import PreferenceBatch
from eqxformer.data.prefixes import PrefixBatch, SplitAnywhere
from eqxformer.data.sentences import ContrastiveBatch, Sentences
from eqxformer.data.spans import SpanCorruption
from eqxformer.data.windows import Epochs, RandomWindows, Windows, consecutive

__all__ = [
    "Characters",
    "ContrastiveBatch",
    "CorruptedWindows",
    "Corruption",
    "Denoising",
    "Epochs",
    "Feed",
    "Infill",
    "LabelledBatch",
    "MaskTokens",
    "Noise",
    "PairBatch",
    "PermuteSentences",
    "PreferenceBatch",
    "PrefixBatch",
    "RandomWindows",
    "Sentences",
    "SpanCorruption",
    "SplitAnywhere",
    "TokenBatch",
    "Windows",
    "consecutive",
    "feed",
]
