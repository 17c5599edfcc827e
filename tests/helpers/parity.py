"""Our model of a checkpoint beside what the reference made of the same: outputs and gradients.

What is expected comes from `tests/parity/live.py`, live or stored in `tests/golden`; nothing
here needs torch.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors import safe_open
from safetensors.numpy import save_file

import eqxformer as ef
from eqxformer.pretrained import Checkpoint

NOISE_MARGIN = 30.0
EPSILON = float(np.finfo(np.float32).eps)

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass
class Expected:
    """A batch, the reference's outputs for it, the gradients of its parameters, and their noise.

    Arguments:
        inputs: `tokens`, `valid`, and where the model takes them `types`, `source` or `frames`,
            `source_valid`.
        outputs: by name, zero at padding; those called `hidden...` take no part in the loss.
        gradients: of the loss, by the reference's names of its parameters.
        noise: the largest error of the reference's own float32, by `output.name` and
            `gradient.name`.
        places: `all` where positions count padding too, else they count real tokens.
    """

    inputs: Arrays
    outputs: Arrays
    gradients: Arrays
    noise: dict[str, float]
    places: str = "real"

    def save(self, path: Path) -> None:
        """Everything in one safetensors file."""
        groups = {"input": self.inputs, "output": self.outputs, "gradient": self.gradients}
        arrays = {
            f"{group}.{key}": np.ascontiguousarray(
                array if array.dtype.kind in "biu" else array.astype(np.float32)
            )
            for group, found in groups.items()
            for key, array in found.items()
        }
        metadata = {"noise": json.dumps(self.noise), "places": self.places}
        save_file(arrays, path, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> "Expected":
        """What `save` wrote."""
        groups: dict[str, Arrays] = {"input": {}, "output": {}, "gradient": {}}
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            for name in file.keys():  # noqa: SIM118
                group, _, key = name.partition(".")
                groups[group][key] = file.get_tensor(name)
        noise = json.loads(metadata["noise"])
        return cls(*groups.values(), noise, metadata["places"])


@dataclasses.dataclass(frozen=True)
class Error:
    """How far ours is from the exact reference, and how far it may be."""

    name: str
    error: float
    allowed: float
    size: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # false for nan too

    def __str__(self) -> str:
        return (
            f"{self.name}: off by {self.error:.2g}, allowed {self.allowed:.2g}, "
            f"values up to {self.size:.2g}"
        )


def errors(directory: Path, expected: Expected) -> list[Error]:
    """Of every output and every gradient, how far the model in a directory is off."""
    checkpoint = Checkpoint(directory)
    # Without its history, which would make the same model in another directory another program.
    model = ef.rebuild(checkpoint.model(), checkpoint.config.edit(origin=None))
    inputs = {key: jax.device_put(array) for key, array in expected.inputs.items()}
    bare = "last" in expected.outputs
    gradients, outputs = compiled(expected.places, bare)(model, inputs)
    found = {f"output.{k}": np.asarray(v) for k, v in outputs.items()}
    found = {k: without_padding(v, expected.inputs) for k, v in found.items()}
    arrays = {path: np.asarray(g) for path, g in ef.named_arrays(gradients).items()}
    for binding in checkpoint.bindings:
        moved = binding.move.write([arrays[path] for path in binding.ours])
        for name, gradient in zip(binding.theirs, moved, strict=True):
            found[f"gradient.{checkpoint.stored.find(name)}"] = gradient
    wanted = {f"output.{k}": v for k, v in expected.outputs.items()}
    wanted |= {f"gradient.{k}": v for k, v in expected.gradients.items()}
    assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())
    return [error_of(key, found[key], wanted[key], expected.noise[key]) for key in sorted(wanted)]


def error_of(name: str, ours: np.ndarray, exact: np.ndarray, noise: float) -> Error:
    """Of one array: the largest error, and the noise of the reference's float32 30 times over."""
    assert ours.shape == exact.shape, f"{name}: {ours.shape} is not {exact.shape}"
    size = float(np.abs(exact).max())
    allowed = NOISE_MARGIN * max(noise, EPSILON * size)
    return Error(name, float(np.abs(ours - exact).max()), allowed, size)


@functools.cache
def compiled(
    places: str, bare: bool
) -> Callable[[Any, dict[str, Array]], tuple[Any, dict[str, Array]]]:
    """Gradients and outputs of a model; compiled once for all weights of the same tree."""

    @eqx.filter_jit
    @eqx.filter_grad(has_aux=True)
    def run(model: Any, inputs: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        outputs = ours(model, inputs, places, bare=bare)
        loss = sum(
            jnp.where(real(output, inputs), output.astype(jnp.float32) * weight, 0.0).sum()
            for key, output in outputs.items()
            if (weight := loss_weight(key, output.shape)) is not None
        )
        return loss, outputs

    return run


def ours(
    model: Any, inputs: dict[str, Array], places: str, *, bare: bool = False
) -> dict[str, Array]:
    """Hidden states and results of a model of any kind; of a bare one, what its head would get."""
    if isinstance(model, ef.EncoderDecoder):
        return _encoder_decoder(model, inputs, places, bare)
    mask = ef.Padding(inputs["valid"])
    if isinstance(model, ef.EncoderDecoderWithHead):
        model, read = watched(model, lambda m: m.body.encoder.blocks)
        model, written = watched(model, lambda m: m.body.decoder.blocks)
        logits = model(inputs["tokens"], mask=mask)
        return {"logits": logits, **hidden(read, ".source"), **hidden(written, ".target")}
    more: dict[str, Any] = {"types": inputs["types"]} if "types" in inputs else {}
    if places == "all":
        more["positions"] = jnp.arange(inputs["tokens"].shape[-1])
    if isinstance(model, ef.DecoderLM):
        watch, seen = watched(model, lambda m: m.blocks)
        return {"logits": watch(inputs["tokens"], mask=mask, **more), **hidden(seen)}
    if isinstance(model, ef.EncoderWithHead):
        watch, seen = watched(model, lambda m: m.encoder.blocks)
        return {"logits": watch(inputs["tokens"], mask=mask, **more), **hidden(seen)}
    watch, seen = watched(model, lambda m: m.blocks)
    states = watch(inputs["tokens"], mask=mask, **more)
    found = {"last": states, **hidden(seen)}
    if model.pooling.dense is not None:
        found["pooled"] = model.pooling(states, inputs["valid"])
    return found


def _encoder_decoder(
    model: ef.EncoderDecoder, inputs: dict[str, Array], places: str, bare: bool
) -> dict[str, Array]:
    more: dict[str, Any] = {}
    if places == "all":
        more["source_positions"] = jnp.arange(inputs["source_valid"].shape[-1])
        more["positions"] = jnp.arange(inputs["tokens"].shape[-1])
    model, read = watched(model, lambda m: m.encoder.blocks)
    model, written = watched(model, lambda m: m.decoder.blocks)
    states, _ = model.run(
        inputs["frames"] if "frames" in inputs else inputs["source"],
        inputs["tokens"],
        source_mask=ef.Padding(inputs["source_valid"]),
        mask=ef.Padding(inputs["valid"]),
        **more,
    )
    result = {"last": states} if bare else {"logits": model.logits(states)}
    return {**result, **hidden(read, ".source"), **hidden(written, ".target")}


def loss_weight(key: str, shape: Sequence[int]) -> np.ndarray | None:
    """What the loss multiplies an output with, where it is real: random numbers."""
    if key.startswith("hidden"):
        return None
    numbers = np.random.default_rng(6).normal(size=shape) / np.prod(shape) ** 0.5
    return numbers.astype(np.float32)


def without_padding(output: np.ndarray, inputs: Any) -> np.ndarray:
    """Zeros where no real token is."""
    return np.where(real(output, inputs), output, 0.0)


def real(output: Any, inputs: Any) -> Any:
    """Which numbers of an output count; a pooled row does where its first token is real."""
    valid = inputs["valid"]
    if output.ndim == 2:
        return valid[:, :1]
    return (valid if output.shape[1] == valid.shape[1] else inputs["source_valid"])[..., None]


def make_batch(*, vocab: int = 50, seq: int = 10, source: int = 12, padding: int = 0) -> Arrays:
    """The batch of all tests: rows padded on the right, the left, both sides and not at all.

    Real ids start at 2, so that neither padding nor an end is among them.
    """
    random = np.random.default_rng(5)
    valid = np.ones((4, seq), bool)
    valid[1, -3:] = valid[2, :4] = valid[3, :2] = valid[3, -2:] = False
    source_valid = np.ones((4, source), bool)
    source_valid[0, :3] = source_valid[2, -5:] = source_valid[3, :1] = source_valid[3, -4:] = False
    return {
        "tokens": np.where(valid, random.integers(2, vocab, valid.shape), padding),
        "valid": valid,
        "types": random.integers(0, 2, valid.shape),
        "source": np.where(source_valid, random.integers(2, vocab, source_valid.shape), padding),
        "source_valid": source_valid,
    }


def make_ended_batch(end: int, *, vocab: int = 50, padding: int = 0) -> Arrays:
    """Rows padded on the right alone, with two ends in each: one early, one before its last token.

    Encoder-decoders with labels pool the last of the ends, as many of which are in every row.
    """
    random, lengths = np.random.default_rng(9), np.array([10, 7, 6, 5])
    valid = np.arange(10) < lengths[:, None]
    tokens = np.where(valid, random.integers(2, vocab, valid.shape), padding)
    tokens[:, 2] = tokens[np.arange(4), lengths - 2] = end
    return {"tokens": tokens, "valid": valid}


class Watched:
    """A stack of blocks that notes what enters each of them."""

    def __init__(self, stack: ef.Stack) -> None:
        self.stack, self.seen = stack, []

    def run(self, x: Array, context: ef.Context, **_: Any) -> tuple[Array, None, None]:
        for block in self.stack:
            repeated = isinstance(block, ef.Repeated)
            for each in block.blocks * block.times if repeated else (block,):
                self.seen.append(x)
                x, _, _ = each.run(x, context)
        return x, None, None


def watched(model: Any, where: Callable[[Any], ef.Stack]) -> tuple[Any, list[Array]]:
    """The model with the stack that `where` finds watched, and the list of what it will note."""
    watch = Watched(where(model))
    return eqx.tree_at(where, model, watch), watch.seen


def hidden(states: Sequence[Any], side: str = "") -> dict[str, Any]:
    """Hidden states by the number of the block they enter."""
    return {f"hidden{side}.{i}": state for i, state in enumerate(states)}
