"""A model's cache for the beams of every row: what they share is there once, and nothing moves.

The batch of such a cache is `[rows, beams]`. Its parts are of three kinds:

    a source, and the prompt's tokens     there once a row, along an axis of 1 for the beams
    keys and values of the beams          written once, and found by a table (`BeamCache`)
    what a block of your own remembers    there for every beam, and taken along when beams move
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from eqxformer.layers.beam_cache import BeamCache, Seating
from eqxformer.layers.cache import FullCache, RingCache, SourceCache
from eqxformer.models.decoder_lm import ModelCache


def spread(
    cache: ModelCache,
    source: Bool[Array, "rows keys"] | None,
    *,
    beams: int,
    shared: int,
    steps: int,
) -> ModelCache:
    """The cache of prompts made one of so many beams each, with room for so many steps.

    Arguments:
        source: which places of the source are real. The others become zeros, once for all steps.
        shared: slots for the tokens of a prompt.
    """

    def each(node: Any) -> Any:
        if isinstance(node, SourceCache):
            return jax.tree.map(lambda x: _blanked(x, source)[:, None], node)
        if type(node) in (FullCache, RingCache):
            return BeamCache.of(node, beams=beams, shared=shared, steps=steps)
        return jnp.broadcast_to(node[:, None], (node.shape[0], beams, *node.shape[1:]))

    return _mapped(each, cache, (SourceCache, FullCache, RingCache))


def parted_source(cache: ModelCache) -> tuple[Any, ModelCache]:
    """What a source has left in the cache, which no step changes, and the rest of it."""

    def kept(node: Any) -> bool:
        return isinstance(node, SourceCache)

    return eqx.partition(cache, kept, is_leaf=kept)


def seated(cache: ModelCache, seating: Seating) -> ModelCache:
    """The cache with the table by which the beams find their tokens."""
    return _mapped(lambda node: _with(node, seating), cache, (BeamCache, SourceCache))


def followed(cache: ModelCache, beams: Int[Array, "rows beams"]) -> ModelCache:
    """The cache after a step in which each beam has gone on from the given one."""
    rows = jnp.arange(beams.shape[0])[:, None]

    def each(node: Any) -> Any:
        if isinstance(node, (BeamCache, SourceCache)):
            return _with(node, None)
        return node[rows, beams]

    return _mapped(each, cache, (BeamCache, SourceCache))


def _with(node: Any, seating: Seating | None) -> Any:
    if not isinstance(node, BeamCache):
        return node
    return BeamCache(node.keys, node.values, seating, node.shared, node.beams)


def _blanked(x: Array, real: Bool[Array, "rows keys"] | None) -> Array:
    """Zeros in place of padding: a weight of zero does not remove a NaN."""
    if real is None:
        return x
    kept = jnp.broadcast_to(real[:, None, :, None], x.shape)
    return jnp.where(kept, x, jnp.zeros_like(x))


def _mapped(
    function: Callable[[Any], Any], cache: ModelCache, kinds: tuple[type, ...]
) -> ModelCache:
    """The cache with a function done to its parts of these kinds, and to every other array."""

    def group(blocks: Any) -> Any:
        return jax.tree.map(function, blocks, is_leaf=lambda node: type(node) in kinds)

    blocks = tuple(
        group(each) if size is None else jax.vmap(group, axis_size=size)(each)
        for each, size in zip(cache.blocks, cache.sizes, strict=True)
    )
    return ModelCache(blocks, function(cache.length), cache.sizes)
