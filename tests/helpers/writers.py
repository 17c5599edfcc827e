"""The models of the golden checkpoints that write text, with rows for them to read."""

import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

import eqxformer as ef

GOLDEN = Path(__file__).parents[1] / "golden"
_ENDS = ("CausalLM", "LMHeadModel", "ConditionalGeneration", "MTModel")


def _class_name(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["architectures"][0]


# Told by the names of their classes, since every worker needs this list before its first test;
# tests/architectures/test_every_architecture.py compares it with the models.
WRITERS = [
    folder.name for folder in sorted(GOLDEN.iterdir()) if _class_name(folder).endswith(_ENDS)
]
# Longer than the windows of the small models, up to their last position; and, for Phi 3, on one
# side of the length at which its positions change for a whole text.
LENGTHS, NEW = (9, 6, 12), 5


def texts(vocab: int, seed: int = 0) -> list[list[int]]:
    """Random texts; no id is one of the first few, which may be special."""
    random = np.random.default_rng(seed)
    return [random.integers(5, vocab, length).tolist() for length in LENGTHS]


def padded(rows: list[list[int]], side: str = "right") -> tuple[np.ndarray, np.ndarray]:
    """Rows as an array with padding on a side, and which places are real."""
    size = max(len(row) for row in rows)
    ids, valid = np.zeros((len(rows), size), np.int32), np.zeros((len(rows), size), bool)
    for number, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(size - len(row), size)
        ids[number, at], valid[number, at] = row, True
    return ids, valid


@eqx.filter_jit
def uncached(model: Any, source: Any, source_valid: Any, ids: Any, valid: Any) -> jax.Array:
    """The logits of whole texts at once."""
    mask = ef.Padding(valid)
    if isinstance(model, ef.EncoderDecoder):
        across = None if source_valid is None else ef.Padding(source_valid)
        return model(source, ids, source_mask=across, mask=mask)
    return model(ids, mask=mask)


def sources(model: Any) -> Any:
    """What the encoder reads, in the forms of `generate` and of the model."""
    encoder = model.config.encoder
    if isinstance(encoder, ef.AudioEncoder.Config):
        shape = (len(LENGTHS), 2 * encoder.embedding.positions.length, encoder.bins)
        frames = jax.random.normal(jax.random.key(0), shape)
        return frames, (frames, None)
    lists = texts(encoder.vocab)
    ids, valid = padded(lists)
    return lists, (jax.device_put(ids), jax.device_put(valid))


def logits_without_cache(model: Any, plain: Any, made: list[list[int]]) -> list[np.ndarray]:
    """Of each row, the logits behind each of its tokens."""
    ids, valid = padded(made)
    out = uncached(model, *plain, jax.device_put(ids), jax.device_put(valid))
    return [np.asarray(out[row, : len(text)]) for row, text in enumerate(made)]
