"""What a training step on a mesh needs of every device, on paper: memory, and bytes that are sent.

Weights, gradients and the optimizer's memory are counted exactly, from shapes. Activations are what
JAX keeps for the backward pass, from which XLA may leave some out. Nothing is compiled, and no
device is needed.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxformer.blocks.stack import Layout, Remat, Scanned
from eqxformer.checkpoints.names import is_array, unrolled
from eqxformer.checkpoints.rebuild import shapes
from eqxformer.config import Config, paths
from eqxformer.constraints import ROWS
from eqxformer.losses.chunked import CHUNK
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.encoder import Encoder
from eqxformer.models.encoder_decoder import EncoderDecoder
from eqxformer.optimizers.optimizer import AdamW, Optimizer
from eqxformer.sharding.mesh import spelled
from eqxformer.sharding.mirror import Path
from eqxformer.sharding.placement import Placement
from eqxformer.sharding.rules import Place
from eqxformer.training.precision import Precision
from eqxformer.training.step import abstract_state
from eqxformer.training.traffic import Share, sent, sides

_ROWS, _LENGTH = 7, 13  # of the batches whose activations are counted, and twice as many


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes that a training step needs of each device.

    Arguments:
        weights, gradients, optimizer: what each holds of these all the time.
        computing: its weights in the type of computing, where that is another, and the weights of
            one block gathered.
        kept: activations of all blocks that wait for the backward pass.
        block: activations of the block that is at work.
        scores: those of attention among these, for every pair of tokens; not in `kept` and `block`.
            A fused kernel has none.
        logits: those of a chunk of tokens, and their gradient.
        sent: what it sends to others in a step, by the axis of the mesh and the purpose.
        whole: what the mesh should cut and cannot; see `Placement.whole`.
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
        config: of a `DecoderLM`, an `EncoderDecoder` or an `Encoder`.
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
    blocks = sum(len(side.blocks) for side in sides(config))
    kept = _activations(_laid_out(config, remat), precision)
    every = kept if remat is None else _activations(_laid_out(config, None), precision)
    inside = every.minus(kept, blocks)
    number = jnp.dtype(precision.compute).itemsize
    return Estimate(
        weights=weights,
        gradients=weights // jnp.dtype(precision.parameters).itemsize * number,
        optimizer=held(state.optimizer),
        computing=_computing(places, placement.sizes, precision, weights),
        kept=kept.bytes(tokens, share.tensor),
        block=inside.bytes(tokens, share.tensor),
        scores=round((kept.pair + inside.pair) * tokens * length / share.tensor),
        logits=3 * 4 * min(tokens, CHUNK) * getattr(sides(config)[-1], "vocab", 0) // share.tensor,
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


def _laid_out(config: Any, remat: Remat) -> Any:
    """The config with its stacks scanned; `NotImplementedError` for another kind of model."""
    kinds = (DecoderLM.Config, Encoder.Config, EncoderDecoder.Config)
    if not isinstance(config, kinds) or not all(hasattr(side, "vocab") for side in sides(config)):
        raise NotImplementedError(
            "Estimated are decoders, encoders and encoder-decoders of tokens; "
            f"got a {type(config).__qualname__.removesuffix('.Config')}."
        )
    for path, part in paths(config).items():
        if isinstance(getattr(part, "layout", None), Layout):
            config = config.edit(path, layout=Scanned(remat))
    return config


class _Activations(NamedTuple):
    """Bytes kept for the backward pass per token, per pair of tokens; those that `tensor` cuts."""

    token: float
    pair: float
    cut: float

    def bytes(self, tokens: int, tensor: int) -> int:
        """Those of so many tokens, without what each pair of them has."""
        return round(tokens * (self.token - self.cut + self.cut / tensor))

    def minus(self, other: "_Activations", blocks: int) -> "_Activations":
        """What a block has more than in `other`."""
        return _Activations(*(max(a - b, 0.0) / blocks for a, b in zip(self, other, strict=True)))


def _activations(config: Any, precision: Precision) -> _Activations:
    """What a batch keeps, told from what it keeps for twice the rows and twice the tokens."""
    skeleton = shapes(config)
    once, rows, both = (
        _residuals(skeleton, precision, rows, length)
        for rows, length in (
            (_ROWS, _LENGTH),
            (2 * _ROWS, _LENGTH),
            (2 * _ROWS, 2 * _LENGTH),
        )
    )
    fewer, some, more = map(_bytes, (once, rows, both))
    # A row of n tokens keeps n * token + n * n * pair; what does not grow with rows, weights.
    single = (some - fewer) / (_ROWS * _LENGTH)  # token + _LENGTH * pair
    double = (more - some) / (2 * _ROWS * _LENGTH)  # token + 3 * _LENGTH * pair
    pair = max((double - single) / (2 * _LENGTH), 0.0)
    token = single - _LENGTH * pair
    return _Activations(token, pair, token * _cut_share(config, rows))


def _residuals(skeleton: Any, precision: Precision, rows: int, length: int) -> list[Any]:
    """Shapes of what is kept for the backward pass of a batch, with the weights."""
    arrays, fixed = eqx.partition(skeleton, is_array)
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def kept(arrays: Any, tokens: Any) -> list[Any]:
        def states(arrays: Any) -> Any:
            model = precision.computing(eqx.combine(arrays, fixed))
            return model.run(*(tokens,) * len(sides(model.config)))[0]

        _, back = jax.vjp(states, arrays)
        return list({id(leaf): leaf for leaf in jax.tree.leaves(back)}.values())

    return jax.eval_shape(kept, arrays, tokens)


def _cut_share(config: Any, leaves: list[Any]) -> float:
    """The share of activations that lie by heads or by hidden units, which `tensor` cuts."""
    words, parts = ("heads", "kv_heads", "hidden"), paths(config).values()
    sizes = {getattr(part, word, None) for part in parts for word in words}
    sizes -= {side.dim for side in sides(config)}
    of_rows = [x for x in leaves if 2 * _ROWS in x.shape[:2] and x.shape.count(_LENGTH) < 2]
    cut = [x for x in of_rows if sizes & set(x.shape[x.shape.index(2 * _ROWS) :])]
    return _bytes(cut) / max(_bytes(of_rows), 1)


def _bytes(leaves: list[Any]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


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
