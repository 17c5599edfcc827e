"""Data: what one step learns from, and how batches are made of files and texts."""

from eqxformer.data.batches import PairBatch, StepBatches, TokenBatch
from eqxformer.data.characters import Characters
from eqxformer.data.documents import Documents, TokenDocuments, tokenized
from eqxformer.data.feed import Feed, feed
from eqxformer.data.packing import PackedRows, Packing
from eqxformer.data.share import Share
from eqxformer.data.sources import JsonLines, TextFiles, TokenFiles
from eqxformer.data.windows import Epochs, RandomWindows, Windows, consecutive

__all__ = [
    "Characters",
    "Documents",
    "Epochs",
    "Feed",
    "JsonLines",
    "PackedRows",
    "Packing",
    "PairBatch",
    "RandomWindows",
    "Share",
    "StepBatches",
    "TextFiles",
    "TokenBatch",
    "TokenDocuments",
    "TokenFiles",
    "Windows",
    "consecutive",
    "feed",
    "tokenized",
]
