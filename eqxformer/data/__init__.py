"""Data: what one step learns from, and how batches are made of files and texts."""

from eqxformer.data.batches import PairBatch, StepBatches, TokenBatch
from eqxformer.data.characters import Characters
from eqxformer.data.corruption import CorruptedWindows, Corruption
from eqxformer.data.cuts import BPEDropout
from eqxformer.data.denoising import Denoising, Infill, Noise, PermuteSentences
from eqxformer.data.documents import Documents, TokenDocuments, tokenized
from eqxformer.data.feed import Feed, feed
from eqxformer.data.labelled import LabelledBatch
from eqxformer.data.masking import MaskTokens
from eqxformer.data.packing import PackedRows, Packing
from eqxformer.data.pairs import Pairs, TokenPairs
from eqxformer.data.parallel import ParallelFiles, ParallelText
from eqxformer.data.preferences import PreferenceBatch
from eqxformer.data.prefixes import PrefixBatch, SplitAnywhere
from eqxformer.data.sentences import ContrastiveBatch, Sentences
from eqxformer.data.share import Share
from eqxformer.data.sources import JsonLines, TextFiles, TokenFiles
from eqxformer.data.spans import SpanCorruption
from eqxformer.data.subwords import ByteLevelBPE, Subwords, Unigram, WordBPE
from eqxformer.data.tokenizer import Tokenizer
from eqxformer.data.windows import Epochs, RandomWindows, Windows, consecutive

__all__ = [
    "BPEDropout",
    "ByteLevelBPE",
    "Characters",
    "ContrastiveBatch",
    "CorruptedWindows",
    "Corruption",
    "Denoising",
    "Documents",
    "Epochs",
    "Feed",
    "Infill",
    "JsonLines",
    "LabelledBatch",
    "MaskTokens",
    "Noise",
    "PackedRows",
    "Packing",
    "PairBatch",
    "Pairs",
    "ParallelFiles",
    "ParallelText",
    "PermuteSentences",
    "PreferenceBatch",
    "PrefixBatch",
    "RandomWindows",
    "Sentences",
    "Share",
    "SpanCorruption",
    "SplitAnywhere",
    "StepBatches",
    "Subwords",
    "TextFiles",
    "TokenBatch",
    "TokenDocuments",
    "TokenFiles",
    "TokenPairs",
    "Tokenizer",
    "Unigram",
    "Windows",
    "WordBPE",
    "consecutive",
    "feed",
    "tokenized",
]
