"""What a training step on a mesh needs of every device, on paper: memory, and bytes that are sent.

Weights, gradients and the optimizer's memory are counted exactly, from shapes. Activations are what
JAX keeps for the backward pass, from which XLA may leave some out. Nothing is compiled, and no
device is needed.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from eqxformer.blocks.stack import Layout, Remat, Scanned
from eqxformer.checkpoints.names import is_array, unrolled
from eqxformer.checkpoints.rebuild import shapes
from eqxformer.config import Config, paths
from eqxformer.constraints import ROWS
from eqxformer.layers.abstract_attention import AbstractAttention
from eqxformer.losses.chunked import CHUNK
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.encoder import Encoder
from eqxformer.models.encoder_decoder import EncoderDecoder
from eqxformer.optimizers.optimizer import AdamW, Optimizer
from eqxformer.sharding.mesh import spelled
from eqxformer.sharding.mirror import Path
from eqxformer.sharding.placement import Placement
from eqxformer.sharding.rules import Place
from eqxformer.training.kept import kept
from eqxformer.training.precision import Precision
from eqxformer.training.state import abstract_state
from eqxformer.training.traffic import Share, body, outermost, scored_vocab, sent, share_of, sides


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes that a training step needs of each device.

    Arguments:
        weights, gradients, optimizer: what each holds of these all the time.
        computing: its weights in the type of computing, where that is another, and the weights of
            one block gathered.
        kept: activations of all blocks that wait for the backward pass.
        block: activations of the block that is at work.
        scores: attention scores in float32 and their gradient, of one block, or of all where none
            is computed again. A fused kernel has none.
        logits: those of a chunk of tokens, and their gradient; 0 where tokens are not scored.
        sent: what it sends to others in a step, by the axis of the mesh and the purpose.
        whole: what the mesh should cut and cannot; see `Placement.whole`.

    Example:
        >>> import eqxformer as ef
        >>> needed = ef.Estimate(
        ...     weights=400, gradients=400, optimizer=800, computing=200, kept=600, block=300,
        ...     scores=100, logits=100, sent={"gradients summed": 400}, whole=[],
        ... )
        >>> needed.memory
        2800
    """

    weights: int
    gradients: int
    optimizer: int
    computing: int
    kept: int
    block: int
    scores: int
    logits: int
    sent: dict[str, int]
    whole: list[str]

    @property
    def memory(self) -> int:
        """All of it together, but for the scores."""
        held = self.weights + self.gradients + self.optimizer + self.computing
        return held + self.kept + self.block + self.logits


def estimate(
    config: Config,
    placement: Placement,
    *,
    batch: int,
    length: int,
    optimizer: Optimizer = AdamW(),
    precision: Precision = Precision(compute="bfloat16"),
    remat: Remat = "nothing_saved",
) -> Estimate:
    """What a step needs of each device, from the config alone.

    Arguments:
        config: of a `DecoderLM`, an `EncoderDecoder` or an `Encoder`, with a head of labels or not.
        placement: a mesh, which may be abstract, and rules; what they cannot cut is whole here.
        batch: rows of a step, over all devices.
        length: tokens of a row; of both sides, where there are two.
        optimizer: what has a memory of each weight.
        precision: the number types.
        remat: what blocks keep for the backward pass, all of which are taken to be scanned.

    Raises `ValueError` for rows or tokens that the mesh does not divide, `NotImplementedError` for
    models of other kinds.

    Example:
        >>> import eqxformer as ef
        >>> config = ef.families.llama(vocab=32_000, dim=4096, layers=32, heads=32, hidden=11_008)
        >>> placement = ef.Placement(ef.abstract_mesh("fsdp=64"))
        >>> needed = ef.estimate(config, placement, batch=64, length=4096)
        >>> f"{needed.weights / 1e9:.2f} GB of weights, {needed.optimizer / 1e9:.2f} GB of moments"
        '0.42 GB of weights, 0.84 GB of moments'
    """
    placement = Placement(placement.mesh, placement.rules.edit(uneven="whole"))
    share = _share(placement.sizes, batch, length)
    skeleton = shapes(_laid_out(config, remat))
    state = abstract_state(skeleton, optimizer.build(1), placement, precision=precision)
    weights, places = held(state.model), placement.places(unrolled(skeleton))
    tokens = share.rows * share.length
    saved = kept(_laid_out(config, remat), precision, share.tensor)
    every = saved if remat is None else kept(_laid_out(config, None), precision, share.tensor)
    heads = [_heads(block, share.tensor) for side in sides(config) for block in side.blocks]
    scored = share_of(scored_vocab(config), share.tensor)
    number = jnp.dtype(precision.compute).itemsize
    return Estimate(
        weights=weights,
        gradients=weights,
        optimizer=held(state.optimizer),
        computing=_computing(places, placement.sizes, precision, weights),
        kept=saved.bytes(tokens, share.tensor),
        block=every.beyond(saved, max(len(heads), 1)).bytes(tokens, share.tensor),
        scores=2 * 4 * tokens * length * (sum(heads) if remat is None else max(heads, default=0)),
        logits=3 * 4 * min(tokens, CHUNK) * scored,
        sent=sent(config, places, placement.sizes, share, number),
        whole=placement.whole(skeleton),
    )


def held(tree: Any) -> int:
    """Bytes that each device holds of a tree of arrays, or of shapes with their shardings."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if is_array(leaf)]
    numbers = [x for x in leaves if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in numbers)


def _share(sizes: Mapping[str, int], batch: int, length: int) -> Share:
    """What a device has of a batch; `ValueError` where it cannot be dealt out."""
    rows = {axis: sizes[axis] for axis in ROWS if axis in sizes}
    for what, number, axes in (
        ("rows of a batch", batch, rows),
        ("tokens of a row", length, {a: n for a, n in sizes.items() if a == "sequence"}),
    ):
        if number < 1 or number % math.prod(axes.values()):
            raise ValueError(
                f"The {what} must be at least 1 and a multiple of {spelled(axes) or 1}, which "
                f"they are dealt out to; got {number:,}."
            )
    return Share(
        batch // math.prod(rows.values()),
        length // sizes.get("sequence", 1),
        sizes.get("tensor", 1),
    )


def _heads(block: Config, tensor: int) -> int:
    """Heads of a device in all attentions of a block, counted as often as they are run."""
    found = outermost(block, AbstractAttention.Config)
    return sum(runs * share_of(attention.heads, tensor) for attention, runs in found)


def _laid_out(config: Any, remat: Remat) -> Any:
    """The config with its stacks scanned; `NotImplementedError` for another kind of model."""
    kinds = (DecoderLM.Config, Encoder.Config, EncoderDecoder.Config)
    inner = body(config)
    if not isinstance(inner, kinds) or not all(hasattr(side, "vocab") for side in sides(inner)):
        raise NotImplementedError(
            "Estimated are decoders, encoders and encoder-decoders of tokens; "
            f"got a {type(config).__qualname__.removesuffix('.Config')}."
        )
    for path, part in paths(config).items():
        if isinstance(getattr(part, "layout", None), Layout):
            config = config.edit(path, layout=Scanned(remat))
    return config


def _computing(
    places: Sequence[tuple[Path, Place]],
    sizes: Mapping[str, int],
    precision: Precision,
    weights: int,
) -> int:
    """A device's weights in the type of computing, and the largest part of the model gathered."""
    number, stored = (
        jnp.dtype(kind).itemsize for kind in (precision.compute, precision.parameters)
    )
    copy = 0 if number == stored else weights // stored * number
    gathered: dict[Path, int] = {}
    for path, place in places:
        if "fsdp" in place.axes:
            cuts = math.prod(sizes[axis] for axis in place.axes if axis != "fsdp")
            block = next((i + 2 for i, name in enumerate(path) if name == "blocks"), len(path))
            part = path[:block]
            gathered[part] = gathered.get(part, 0) + number * math.prod(place.shape) // cuts
    return copy + max(gathered.values(), default=0)
