"""Bytes that each device sends in a training step on a mesh, by the axis and the purpose.

Collectives are counted as rings: of `n` devices, each sends `(n - 1) / n` of an array that is
gathered or scattered, and twice that of one that is summed everywhere (Patarasu and Yuan 2009).
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from eqxformer.config import Config, paths
from eqxformer.constraints import ROWS
from eqxformer.layers.abstract_attention import AbstractAttention
from eqxformer.layers.experts import Experts
from eqxformer.layers.feed_forward import FeedForward
from eqxformer.sharding.mirror import Path
from eqxformer.sharding.rules import Place


class Share(NamedTuple):
    """What one device has of a batch: rows, tokens of each of them; and the axis `tensor`."""

    rows: int
    length: int
    tensor: int


def sent(
    config: Config,
    places: Sequence[tuple[Path, Place]],
    sizes: Mapping[str, int],
    share: Share,
    number: int,
) -> dict[str, int]:
    """Bytes that a device sends in a step, by axis and purpose; what is 0 is left out.

    Arguments:
        config: the model's.
        places: how its arrays are cut.
        sizes: the axes of the mesh.
        share: what a device has of the batch.
        number: bytes of a number that is computed with.
    """
    found = _of_weights(places, sizes, number)
    for side in sides(config):
        for name, size in _of_activations(side, sizes, share, number).items():
            found[name] = found.get(name, 0.0) + size
    return {name: round(size) for name, size in found.items() if size}


def sides(config: Any) -> list[Any]:
    """The parts of a model that have blocks: itself, or its encoder and its decoder."""
    inner = body(config)
    return [inner] if hasattr(inner, "blocks") else [inner.encoder, inner.decoder]


def body(whole: Any) -> Any:
    """A model, or its config, without a head of labels."""
    inner = getattr(whole, "body", whole)
    alone = hasattr(inner, "encoder") and not hasattr(inner, "decoder")
    return inner.encoder if alone else inner


def _of_weights(
    places: Sequence[tuple[Path, Place]], sizes: Mapping[str, int], number: int
) -> dict[str, float]:
    """Matrices gathered twice, forwards and backwards; gradients scattered, and summed."""
    gathered = scattered = summed = 0.0
    for _, place in places:
        axes = place.axes
        whole = number * math.prod(place.shape)
        own = whole / math.prod(sizes[axis] for axis in axes)
        if "fsdp" in axes:
            passed = own * (sizes["fsdp"] - 1)
            gathered, scattered = gathered + 2 * passed, scattered + passed
        others = [axis for axis in (*ROWS, "sequence") if axis in sizes and axis not in axes]
        copies = math.prod(sizes[axis] for axis in others)
        summed += 2 * own * (copies - 1) / copies
    return {
        "fsdp: weights gathered": gathered,
        "fsdp: gradients scattered": scattered,
        "gradients summed": summed,
    }


def _of_activations(
    side: Config, sizes: Mapping[str, int], share: Share, number: int
) -> dict[str, float]:
    """Products summed, keys and values gathered, tokens sent to experts and back.

    Each of these once forwards and once backwards, and what is computed again in the backward pass
    once more.
    """
    inside = paths(side).values()
    attentions = [part for part in inside if isinstance(part, AbstractAttention.Config)]
    feed_forwards = [part for part in inside if isinstance(part, FeedForward.Config)]
    mixtures = [part for part in feed_forwards if isinstance(part, Experts.Config)]
    dim: int = side.dim  # pyright: ignore[reportAttributeAccessIssue]
    tokens = number * share.rows * share.length
    branches = 3 * len(attentions) + 2 * len(side.blocks)  # pyright: ignore[reportAttributeAccessIssue]
    keys = sum(map(partial(_key_numbers, dim), attentions))
    tensor, sequence, expert = (sizes.get(axis, 1) for axis in ("tensor", "sequence", "expert"))
    return {
        "tensor: products summed": 2 * (tensor - 1) / tensor * tokens * dim * (branches + 2),
        "sequence: keys and values gathered": 3 * (sequence - 1) * tokens * keys,
        "expert: tokens sent and returned": 5 * (expert - 1) * tokens * dim * len(mixtures),
    }


def _key_numbers(dim: int, attention: Any) -> int:
    """Numbers in the keys and values of a token."""
    head = getattr(attention, "head_dim", None) or dim // attention.heads
    value = getattr(attention, "value_dim", None) or head
    return (getattr(attention, "kv_heads", None) or attention.heads) * (head + value)
