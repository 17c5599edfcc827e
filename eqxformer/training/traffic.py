"""Bytes that each device sends in a training step on a mesh, by the axis and the purpose.

Collectives are counted as rings: of `n` devices, each sends `(n - 1) / n` of an array that is
gathered or scattered, and twice that of one that is summed everywhere (Patarasu and Yuan 2009).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eqxformer.blocks.repeated import Repeated
from eqxformer.config import Config, paths
from eqxformer.constraints import ROWS
from eqxformer.layers.abstract_attention import AbstractAttention
from eqxformer.layers.experts import Experts
from eqxformer.layers.feed_forward import FeedForward
from eqxformer.models.heads import TokenHead
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
    *before, last = sides(config)
    for side, scored in (*((side, 0) for side in before), (last, scored_vocab(config))):
        for name, size in _of_activations(side, scored, sizes, share, number).items():
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


def scored_vocab(config: Any) -> int:
    """How many tokens a model scores; 0 for one without a head, or with one of labels."""
    head = getattr(getattr(config, "decoder", config), "head", None)
    return sides(config)[-1].vocab if isinstance(head, TokenHead.Config) else 0


def outermost(block: Config, kind: type[Config]) -> list[tuple[Any, int]]:
    """The parts of a kind in a block that are in no other of it, and how often each is run.

    What is in a `Repeated` is run `times` over.
    """
    found: list[tuple[Any, int]] = []
    taken: tuple[str, ...] = ()
    times: dict[str, int] = {}
    for path, part in paths(block).items():  # what is in a part comes behind it
        front = f"{path}.".lstrip(".")
        if isinstance(part, Repeated.Config):
            times[front] = part.times
        if isinstance(part, kind) and not path.startswith(taken):
            taken = (*taken, front)
            runs = (number for above, number in times.items() if path.startswith(above))
            found.append((part, math.prod(runs)))
    return found


def share_of(number: int, tensor: int) -> int:
    """How many of `number` heads, or tokens of a vocabulary, are a device's; all if uneven."""
    return number if number % tensor else number // tensor


def _of_weights(
    places: Sequence[tuple[Path, Place]], sizes: Mapping[str, int], number: int
) -> dict[str, float]:
    """Matrices gathered twice, forwards and backwards; gradients scattered, and summed.

    Of blocks that `Repeated` shares too: XLA gathers once what several runs use.
    """
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
    side: Any, scored: int, sizes: Mapping[str, int], share: Share, number: int
) -> dict[str, float]:
    """Products summed, keys and values gathered, tokens sent to experts and back.

    Each of these once forwards and once backwards, and what is computed again in the backward pass
    once more: all of a block but its last product. What `tensor` cannot cut is not summed.

    Arguments:
        side: with the blocks.
        scored: tokens that its head scores.
    """
    tensor, sequence, expert = (sizes.get(axis, 1) for axis in ("tensor", "sequence", "expert"))
    summed = sum(vocab > 0 and vocab % tensor == 0 for vocab in (side.vocab, scored))
    keys = exchanged = 0
    for block in side.blocks:
        attentions = outermost(block, AbstractAttention.Config)
        looked = sum(n for each, n in attentions if each.heads % tensor == 0)
        fed = sum(n for each, n in outermost(block, FeedForward.Config) if _is_cut(each, tensor))
        routed = sum(n for each, n in outermost(block, Experts.Config) if each.count % expert == 0)
        summed += 3 * (looked + fed) - (fed > 0)
        keys += sum(n * _key_numbers(side.dim, each, tensor) for each, n in attentions)
        exchanged += 3 * 2 * routed - (routed > 0)  # to the experts, and back
    tokens = number * share.rows * share.length
    return {
        "tensor: products summed": 2 * (tensor - 1) / tensor * tokens * side.dim * summed,
        "sequence: keys and values gathered": 3 * (sequence - 1) * tokens * keys,
        "expert: tokens sent and returned": (expert - 1) * tokens * side.dim * exchanged,
    }


def _is_cut(feed_forward: Config, tensor: int) -> bool:
    """Whether devices share the hidden units of a feed-forward, or of one in it."""
    widths = (getattr(part, "hidden", None) for part in paths(feed_forward).values())
    return any(isinstance(width, int) and width % tensor == 0 for width in widths)


def _key_numbers(dim: int, attention: Any, tensor: int) -> int:
    """Numbers in the keys and values of a token that a device has."""
    head = getattr(attention, "head_dim", None) or dim // attention.heads
    value = getattr(attention, "value_dim", None) or head
    heads = getattr(attention, "kv_heads", None) or attention.heads
    return share_of(heads, tensor) * (head + value)
