"""A model's linear maps as the modules of transformers: some are several of ours in one.

An adapter on a fused projection (GPT-2's `c_attn`, Phi-3's `qkv_proj`) reads the input with one
`down` and writes all outputs. It is an adapter for each of our maps, with that `down` and a share
of the outputs. The other way round, adapters of ours, each with a `down` of its own, are one with
all of these, in whose `up` every map's outputs see their own ranks alone. No output changes.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from eqxformer.adapters.lora import Adapter, Decomposed, DoRA, LoRA, LowRank
from eqxformer.checkpoints.moves import Fused, Shape
from eqxformer.checkpoints.rules import Binding
from eqxformer.layers.linear import Linear

DOWN, UP, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Module:
    """A linear map of transformers, which holds one or several of ours.

    Arguments:
        name: theirs.
        paths: of our maps, in the order of their outputs.
        shapes: of our maps' weights.
        outputs: how the outputs of ours lie among theirs.
        turned: whether the weight is stored as [in, out].
    """

    name: str
    paths: tuple[str, ...]
    shapes: tuple[Shape, ...]
    outputs: Fused
    turned: bool

    def tensors(self, lora: LoRA) -> dict[str, Shape]:
        """The shapes of the tensors of an adapter, by the ends of their names."""
        inputs, outputs = self.shapes[0][0], sum(shape[1] for shape in self.shapes)
        found = {DOWN: (lora.rank, inputs), UP: (outputs, lora.rank)}
        return {**found, MAGNITUDE: (outputs,)} if isinstance(lora, DoRA) else found

    def apart(self, lora: LoRA, tensors: Mapping[str, np.ndarray]) -> dict[str, Adapter]:
        """The adapters of our maps, by their paths, in that of theirs.

        A rank that only other maps write is left out, and so is an adapter of no rank.
        """
        down = tensors[DOWN].T
        outs = [shape[1] for shape in self.shapes]
        ups = self.outputs.read([tensors[UP]], [(lora.rank, out) for out in outs])
        magnitudes: list[Any] = [None] * len(outs)
        if isinstance(lora, DoRA):
            magnitudes = self.outputs.read([tensors[MAGNITUDE]], [(out,) for out in outs])
        used = np.stack([up.any(1) for up in ups])
        kept = used | ~used.any(0)
        if isinstance(lora, DoRA):  # a magnitude counts without any rank too
            kept[~kept.any(1), 0] = True
        found = {}
        for path, up, magnitude, keep in zip(self.paths, ups, magnitudes, kept, strict=True):
            if keep.any():
                rank = int(keep.sum())
                alpha = lora.alpha if rank == lora.rank else lora.factor * lora.divisor(rank)
                part = lora.edit(rank=rank, alpha=alpha)
                found[path] = _adapter(part, down[:, keep], up[keep], magnitude)
        return found

    def together(
        self, adapters: Mapping[str, Adapter], lengths: Mapping[str, np.ndarray]
    ) -> tuple[LoRA, Arrays]:
        """The adapter of theirs that does what those of our maps do, of which some may be absent.

        Arguments:
            adapters: of our maps, by their paths.
            lengths: of the weights of those that have none, where others have magnitudes.
        """
        there = [adapters[path] for path in self.paths if path in adapters]
        first = there[0].config
        shared = _shared(there)
        rank = first.rank if shared else sum(adapter.config.rank for adapter in there)
        down = np.concatenate([_numbers(each.down) for each in there[: 1 if shared else None]], 1)
        ups, row = [], 0
        for path, (_, out) in zip(self.paths, self.shapes, strict=True):
            up = np.zeros((rank, out), np.float32)
            if path in adapters:
                adapter = adapters[path]
                ratio = adapter.config.factor / first.factor
                part = _numbers(adapter.up) * np.float32(ratio)
                up[row : row + len(part)] = part
                row += 0 if shared else len(part)
            ups.append(up)
        alpha = first.alpha if rank == first.rank else first.factor * first.divisor(rank)
        tensors = {DOWN: down.T, UP: self.outputs.write(ups)[0]}
        if isinstance(first, DoRA):
            tensors[MAGNITUDE] = self.outputs.write(
                [_magnitude(adapters[p]) if p in adapters else lengths[p] for p in self.paths]
            )[0]
        return first.edit(rank=rank, alpha=alpha), tensors


def modules_of(bindings: Iterable[Binding], linears: Mapping[str, Any]) -> dict[str, Module]:
    """The modules of transformers that are linear maps of ours, by their names.

    Arguments:
        bindings: where the arrays of the model are stored.
        linears: the model's linear maps by their paths.
    """
    found = {}
    for binding in bindings:
        paths = tuple(path.removesuffix(".weight") for path in binding.ours)
        outputs = binding.move.outputs()
        known = all(path in linears and f"{path}.weight" in binding.ours for path in paths)
        name = binding.theirs[0]
        if outputs is None or not known or len(binding.theirs) > 1 or not name.endswith(".weight"):
            continue
        if any(len(shape) != 2 for shape in binding.shapes):  # experts
            continue
        # Of a map without inputs it shows on which axis they lie.
        rows, _ = binding.move.shapes([(0, outs) for _, outs in binding.shapes])[0]
        name = name.removesuffix(".weight")
        found[name] = Module(name, paths, binding.shapes, outputs, turned=rows == 0)
    return found


def renamed(name: str, words: Mapping[str, str]) -> str:
    """A name with other words in place of some, which are given by those."""
    return ".".join(words.get(word, word) for word in name.split("."))


def _adapter(lora: LoRA, down: Any, up: Any, magnitude: Any) -> Adapter:
    arrays = [jnp.asarray(np.ascontiguousarray(a, np.float32)) for a in (down, up)]
    parts = [Linear.of(array, None) for array in arrays]
    if magnitude is None:
        return LowRank(parts[0], parts[1], lora)
    numbers = jnp.asarray(np.ascontiguousarray(magnitude, np.float32))
    return Decomposed(down=parts[0], up=parts[1], magnitude=numbers, config=lora)


def _shared(adapters: list[Adapter]) -> bool:
    """Whether adapters read their input in one and the same way."""
    first = _numbers(adapters[0].down)
    return all(np.array_equal(_numbers(each.down), first) for each in adapters[1:])


def _numbers(linear: Linear) -> np.ndarray:
    return np.asarray(linear.weight, np.float32)


def _magnitude(adapter: Any) -> np.ndarray:
    return np.asarray(adapter.magnitude, np.float32)
