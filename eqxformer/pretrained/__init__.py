"""Checkpoints of transformers, both ways."""

from eqxformer.pretrained.checkpoint import Checkpoint
from eqxformer.pretrained.load import from_pretrained, load_tokenizer
from eqxformer.pretrained.presets import preset, preset_names
from eqxformer.pretrained.save import save_pretrained

__all__ = [
    "Checkpoint",
    "from_pretrained",
    "load_tokenizer",
    "preset",
    "preset_names",
    "save_pretrained",
]
