"""What every peer is asked to do: sizes, first weights, a batch, and AdamW's settings."""

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY, CLIP = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0
NORM_EPSILON = 1e-5  # of layer norms and RMS norms
ROTARY_BASE = 10_000.0


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and its batch.

    `kind` is `gpt` (GPT-2: biases, tied head, tanh GELU), `llama` (RMS norm, rotary positions,
    SwiGLU, no biases, tied head) or `seq2seq` (pre-norm, sinusoids, ReLU, untied head with bias).
    A decoder reads `seq` tokens, an encoder `source`.
    """

    kind: str
    vocab: int
    dim: int
    layers: int
    heads: int
    hidden: int
    seq: int
    batch: int
    source: int = 0

    @property
    def tokens(self) -> int:
        """Tokens read in a step."""
        return self.batch * (self.seq + self.source)


SIZES: dict[str, Size] = {
    "vpj": Size("gpt", 65, dim=128, layers=3, heads=8, hidden=512, seq=32, batch=128),
    "nano": Size("gpt", 65, dim=128, layers=4, heads=4, hidden=512, seq=64, batch=12),
    "baby": Size("gpt", 65, dim=384, layers=6, heads=6, hidden=1536, seq=256, batch=16),
    "baby-llama": Size("llama", 65, dim=384, layers=6, heads=6, hidden=1024, seq=256, batch=16),
    "gpt2": Size("gpt", 50_257, dim=768, layers=12, heads=12, hidden=3072, seq=1024, batch=8),
    "llama": Size("llama", 50_257, dim=768, layers=12, heads=12, hidden=2048, seq=1024, batch=8),
    "seq2seq": Size(
        "seq2seq", 32_000, dim=512, layers=6, heads=8, hidden=2048, seq=128, batch=8, source=128
    ),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A size, a type of numbers, the first weights by our names, and one batch of ids.

    Weights of linear maps are `[in, out]`. All weights are of the type `dtype`, and so are the
    optimizer's moments. The batch has `seq + 1` tokens a row: all but the last are read, all but
    the first are to be predicted.
    """

    size: Size
    dtype: str
    weights: dict[str, np.ndarray]
    tokens: np.ndarray
    source: np.ndarray

    def layer(self, number: int, side: str = "") -> dict[str, np.ndarray]:
        """The weights of one block, by their names in it."""
        start = f"{side}blocks.{number}."
        return {k.removeprefix(start): v for k, v in self.weights.items() if k.startswith(start)}


def config(size: Size) -> Any:
    """Our config of a size."""
    import eqxformer as ef

    sizes = {name: getattr(size, name) for name in ("vocab", "dim", "layers", "heads", "hidden")}
    if size.kind == "gpt":
        return ef.families.gpt(**sizes, context=size.seq)
    if size.kind == "llama":
        return ef.families.llama(**sizes).edit(head=ef.TiedHead.Config())
    return ef.families.transformer(**sizes, wiring=ef.pre_norm())


def write(size: Size, path: pathlib.Path) -> None:
    """Writes the weights that all peers begin with, and the batch."""
    import jax

    import eqxformer as ef
    from eqxformer.bench import harness

    harness.share_device()
    model = config(size).build(key=jax.random.key(0))
    arrays = {name: np.asarray(array) for name, array in ef.named_arrays(model).items()}
    draw = np.random.default_rng(1)
    tokens = draw.integers(0, size.vocab, (size.batch, size.seq + 1))
    source = draw.integers(0, size.vocab, (size.batch, size.source))
    np.savez(path, **{"batch/tokens": tokens, "batch/source": source}, **arrays)


def read(size: Size, dtype: str, path: pathlib.Path) -> Task:
    """What `write` has written."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    tokens, source = arrays.pop("batch/tokens"), arrays.pop("batch/source")
    return Task(size, dtype, arrays, tokens, source)


def sinusoids(length: int, dim: int) -> np.ndarray:
    """Sines on even columns and cosines on odd ones, `sin(p / 10000^(2i / dim))`."""
    angles = np.arange(length)[:, None] * np.exp(-math.log(10_000) * np.arange(0, dim, 2) / dim)
    return np.stack((np.sin(angles), np.cos(angles)), -1).reshape(length, dim).astype(np.float32)
