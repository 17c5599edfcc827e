"""A decoder-only language model; with a source, the decoder of an encoder-decoder."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

from eqxformer.blocks.block import AbstractBlock, Context
from eqxformer.blocks.stack import Layout, Stack, Unrolled
from eqxformer.config import Config, takes_options
from eqxformer.keys import split
from eqxformer.layers.abstract_attention import AbstractAttention
from eqxformer.layers.biases import PositionBias, build_bias
from eqxformer.layers.cache import Cache, SourceCache
from eqxformer.layers.embedding import Embedding
from eqxformer.layers.feed_forward import RouterLosses
from eqxformer.layers.masked_calls import check_batch
from eqxformer.layers.masks import Causal, Mask, ordered, valid_keys
from eqxformer.layers.norms import LayerNorm, Norm, build_norm
from eqxformer.layers.wide import stays_wide
from eqxformer.models.arguments import (
    check_reads_positions,
    check_reads_source,
    check_sizes,
    reads_positions,
)
from eqxformer.models.embedding import InputEmbedding, places
from eqxformer.models.heads import TiedHead, TokenHead
from eqxformer.models.origin import Origin, unknown


class ModelCache(eqx.Module):
    """What a decoder remembers between calls: a cache per group of blocks, and tokens per row.

    Arguments:
        blocks: what each group of blocks remembers; its arrays begin with the axes of the batch.
        length: how many tokens of each row have been read.
        sizes: how many blocks share a group's arrays, along an axis in front; None for one.

    Example:
        >>> import eqxformer as ef
        >>> model = ef.shapes(ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8))
        >>> cache = model.init_cache((3,), slots=8)
        >>> cache.length.shape, cache.blocks[0].attention.keys.shape
        ((3,), (3, 2, 8, 8))
    """

    blocks: tuple[Any, ...]
    length: Int[Array, "*batch"]
    sizes: tuple[int | None, ...] = eqx.field(static=True)

    def each(self, function: Callable[[Array], Array]) -> "ModelCache":
        """The cache with a function done to every array, whose first axes are those of the batch.

        So `cache.each(lambda x: x[rows])` is the cache of some of the rows.
        """
        blocks = tuple(
            jax.tree.map(function if size is None else jax.vmap(function), group)
            for group, size in zip(self.blocks, self.sizes, strict=True)
        )
        return ModelCache(blocks, function(self.length), self.sizes)

    def emptied(self, spare: int) -> "ModelCache":
        """The cache without tokens, but with its source, that can go back by `spare` tokens.

        Only caches of windows get larger by that. Raises `NotImplementedError` for a block of your
        own that remembers anything but a `Cache`.
        """
        blocks = _each_cache(lambda cache: cache.emptied(spare), self.blocks)
        return ModelCache(blocks, jnp.zeros_like(self.length), self.sizes)

    def back_to(self, length: Int[Array, "*batch"]) -> "ModelCache":
        """The cache with at most the first `length` tokens of each row, the newest taken back.

        For windows, as many as `emptied` has made room for. Raises `NotImplementedError` as there.

        Example:
            >>> import eqxformer as ef, jax, jax.numpy as jnp
            >>> config = ef.families.gpt(vocab=65, dim=16, layers=2, heads=2, context=8)
            >>> model = config.build(key=jax.random.key(0))
            >>> _, cache = model.extend(jnp.array([[5, 6, 7]]), model.init_cache((1,), slots=8))
            >>> cache.back_to(jnp.array([1])).length
            Array([1], dtype=int32)
        """
        blocks = _each_cache(lambda cache: cache.back_to(length), self.blocks)
        return ModelCache(blocks, jnp.minimum(self.length, length), self.sizes)


class DecoderLM(eqx.Module):
    """A decoder: `head(norm(blocks(embedding(tokens))))`, scores of the next token everywhere.

    A decoder looks back only: `Causal()` is added to any mask that does not itself say who may look
    ahead (`Prefix` and `Full` do).

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> block = ef.Block.Config(ef.Attention.Config(heads=2), ef.MLP.Config(hidden=32))
        >>> config = ef.DecoderLM.Config(vocab=65, dim=16, blocks=(block,) * 2)
        >>> model = config.build(key=jax.random.key(0))
        >>> model(jnp.array([[1, 2, 3]])).shape
        (1, 3, 65)
    """

    class Config(Config):
        """The whole decoder.

        Arguments:
            vocab: token ids.
            dim: width of the residual stream.
            blocks: the config of every block, first to last.
            embedding: what enters the first block.
            norm: the norm after the last block, or None.
            head: from hidden states to logits.
            bias: a position bias that all blocks share (T5).
            source_dim: width of what cross-attention looks at; `dim` if None.
            layout: how the blocks are stored and run.
            origin: the checkpoint this is from.
        """

        vocab: int
        dim: int
        blocks: tuple[AbstractBlock.Config, ...]
        embedding: InputEmbedding.Config = InputEmbedding.Config()
        norm: Norm.Config | None = LayerNorm.Config()
        head: TokenHead.Config = TiedHead.Config()
        bias: PositionBias.Config | None = None
        source_dim: int | None = None
        layout: Layout = Unrolled()
        origin: Origin | None = unknown()

        def check(self) -> None:
            check_sizes(vocab=self.vocab, dim=self.dim)

        def build(self, *, source_dim: int | None = None, key: PRNGKeyArray) -> "DecoderLM":
            """The model, freshly initialised; `source_dim` is for configs that leave it open.

            The model's own config has it. Raises `ValueError` for another than the config's.
            """
            return DecoderLM(self, source_dim=source_dim, key=key)

    embedding: InputEmbedding
    blocks: Stack
    norm: Norm
    head: TokenHead
    bias: PositionBias | None
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, config: Config, *, source_dim: int | None = None, key: PRNGKeyArray):
        config = _with_source_dim(config, source_dim)
        reads_source = any(block.reads_source for block in config.blocks)
        embedding, blocks, head, bias = split(key, 4)
        self.embedding = config.embedding.build(config.vocab, config.dim, key=embedding)
        self.blocks = Stack.build(
            config.blocks,
            dim=config.dim,
            source_dim=config.source_dim or (config.dim if reads_source else None),
            layout=config.layout,
            key=blocks,
        )
        self.norm = build_norm(config.norm, config.dim)
        width = config.embedding.width
        self.head = config.head.build(config.dim, config.vocab, width=width, key=head)
        self.bias = shared_bias(config.bias, config.blocks, bias)
        self.config = config

    def __call__(
        self,
        tokens: Int[Array, "*batch seq"],
        source: Float[Array, "*batch keys source_dim"] | None = None,
        *,
        mask: Mask | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        source_mask: Mask | None = None,
        table: Embedding | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch seq vocab"]:
        """The logits of the next token at every place.

        Arguments:
            source: what cross-attention looks at, where blocks have it.
            mask: who may look at whom, beside `Causal()`.
            positions: the place of every token; counted from 0 over real tokens if None.
            source_mask: who may look at what in the source.
            table: the token table, for a model that shares another's.
            key: switches dropout on.

        Raises `ValueError` for an id outside the vocabulary or a position past the table; under
        `jit` its row is NaN.
        """
        x, _, _ = self.run(
            tokens,
            source,
            mask=mask,
            positions=positions,
            source_mask=source_mask,
            table=table,
            key=key,
        )
        return self.logits(x, table=table)

    def run(
        self,
        tokens: Int[Array, "*batch seq"],
        source: Float[Array, "*batch keys source_dim"] | None = None,
        *,
        mask: Mask | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        source_mask: Mask | None = None,
        table: Embedding | None = None,
        cache: ModelCache | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*batch seq dim"], ModelCache | None, RouterLosses | None]:
        """The hidden states before the head, the cache with these tokens, and the routers' losses.

        Arguments as in a call; `mask` is over the new tokens where there is a cache.
        """
        if source is not None or source_mask is not None:
            check_reads_source(self.config.blocks)
        check_reads_positions(self.config, positions)
        check_batch(mask, tokens.shape[:-1])
        if cache is not None:
            _check_stored_alike(cache.sizes, self.blocks.sizes)
            check_rows(cache.length.shape, tokens.shape[:-1])
        embedding_key, blocks_key = split(key, 2)
        valid = valid_keys(mask)
        at = positions
        if cache is None:
            at = places(tokens.shape[-1], valid, positions)
        elif positions is None:
            count = places(tokens.shape[-1], valid, None)
            shape = jnp.broadcast_shapes((*cache.length.shape, 1), count.shape)
            at = jnp.broadcast_to(cache.length[..., None], shape) + jnp.broadcast_to(count, shape)
        x = self.embedding(tokens, table=table, positions=at, key=embedding_key)
        context = Context(ordered(mask, Causal()), at, self.bias, source, source_mask)
        caches = None if cache is None else cache.blocks
        x, caches, losses = self.blocks.run(x, context, caches=caches, key=blocks_key)
        if cache is None or caches is None:
            return self.norm(x), None, losses
        if valid is None:
            length = cache.length + tokens.shape[-1]
        else:
            length = cache.length + valid.sum(-1, dtype=cache.length.dtype)
        return self.norm(x), ModelCache(caches, length, cache.sizes), losses

    @property
    def reads_positions(self) -> bool:
        """Whether `positions` make a difference to this model; if not, it refuses them."""
        return reads_positions(self.config)

    def logits(
        self, x: Float[Array, "*batch dim"], *, table: Embedding | None = None
    ) -> Float[Array, "*batch vocab"]:
        """The scores of every token, given hidden states."""
        return self.head(x, self.embedding.table(table))

    def extend(
        self,
        tokens: Int[Array, "*batch seq"],
        cache: ModelCache,
        *,
        mask: Mask | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        source_mask: Mask | None = None,
        table: Embedding | None = None,
    ) -> tuple[Float[Array, "*batch seq vocab"], ModelCache]:
        """The logits of tokens that follow those in the cache, and the cache with them added.

        Example:
            >>> import eqxformer as ef, jax, jax.numpy as jnp
            >>> model = ef.families.gpt(vocab=65, dim=16, layers=2, heads=2, context=8).build(
            ...     key=jax.random.key(0)
            ... )
            >>> logits, cache = model.extend(jnp.array([[5, 6]]), model.init_cache((1,), slots=8))
            >>> cache.length
            Array([2], dtype=int32)
        """
        x, new, _ = self.run(
            tokens,
            mask=mask,
            positions=positions,
            source_mask=source_mask,
            table=table,
            cache=cache,
        )
        return self.logits(x, table=table), new  # pyright: ignore[reportReturnType]

    def read(
        self,
        tokens: Int[Array, "*batch seq"],
        cache: ModelCache,
        *,
        mask: Mask | None = None,
        source_mask: Mask | None = None,
    ) -> tuple[Float[Array, "*batch seq dim"], ModelCache]:
        """As `extend`, but the hidden states: for logits at a few of the places only."""
        x, new, _ = self.run(tokens, mask=mask, source_mask=source_mask, cache=cache)
        return x, new  # pyright: ignore[reportReturnType]

    def init_cache(
        self,
        batch: tuple[int, ...],
        slots: int,
        *,
        source: Float[Array, "*batch keys source_dim"] | None = None,
        dtype: DTypeLike | None = None,
    ) -> ModelCache:
        """An empty cache for rows of `slots` tokens; a source is remembered in it, once for all.

        Its numbers have the type of the model's unless `dtype` says another.
        """
        dtype = _number_type(self.blocks) if dtype is None else dtype
        blocks = self.blocks.init_caches(batch, slots, source=source, dtype=dtype)
        return ModelCache(blocks, jnp.zeros(batch, jnp.int32), self.blocks.sizes)


def _with_source_dim(config: DecoderLM.Config, source_dim: int | None) -> DecoderLM.Config:
    """The config of a decoder that looks at a source of this width."""
    if source_dim is None or source_dim == (config.source_dim or config.dim):
        return config
    if config.source_dim is not None:
        raise ValueError(
            "`source_dim` must be None or that of the config; got "
            f"source_dim={source_dim}, and {config.source_dim} in the config."
        )
    return config.edit(source_dim=source_dim)


def _self_attentions(
    blocks: Iterable[AbstractBlock.Config],
) -> Iterator[AbstractAttention.Config]:
    """Those of blocks, and of blocks that others repeat."""
    for block in blocks:
        attention = getattr(block, "attention", None)
        if isinstance(attention, AbstractAttention.Config):
            yield attention
        yield from _self_attentions(getattr(block, "blocks", ()))


def shared_bias(
    config: PositionBias.Config | None,
    blocks: tuple[AbstractBlock.Config, ...],
    key: PRNGKeyArray,
) -> PositionBias | None:
    """The position bias that all blocks share, for as many heads as they have."""
    if config is None:
        return None
    heads = sorted({a.heads for a in _self_attentions(blocks)})
    if len(heads) != 1:
        raise ValueError(f"A shared `bias` needs blocks of one number of heads; got {heads}.")
    return build_bias(config, heads[0], key=key)


def check_rows(remembered: tuple[int, ...], batch: tuple[int, ...]) -> None:
    """Raises `ValueError` for tokens of another batch than the rows of a cache."""
    pairs = zip(remembered[::-1], batch[::-1], strict=False)
    if any(a != b and 1 not in (a, b) for a, b in pairs):
        raise ValueError(f"The cache is for a batch of {remembered}; this call has {batch}.")


def _check_stored_alike(cache: tuple[int | None, ...], model: tuple[int | None, ...]) -> None:
    """Raises `ValueError` for the cache of a model whose blocks are stored in other groups."""
    if cache != model:
        raise ValueError(
            f"The cache is of blocks stored in groups of {cache}, the model's are in groups of "
            f"{model}; use the cache that this model's own `init_cache` makes."
        )


def _each_cache(function: Callable[[Cache], Cache], blocks: tuple[Any, ...]) -> tuple[Any, ...]:
    """The caches of blocks, with a function done to what self-attention remembers."""

    def each(path: Any, node: Any) -> Any:
        if isinstance(node, SourceCache):
            return node
        if isinstance(node, Cache):
            return function(node)
        owner = type(blocks[path[0].idx]).__name__
        raise NotImplementedError(
            f"Group {path[0].idx} of the blocks remembers its tokens in `{owner}`, which cannot go "
            "back; supported is what remembers them in a `Cache`, with `emptied` and `back_to`."
        )

    return jax.tree_util.tree_map_with_path(
        each, blocks, is_leaf=lambda node: isinstance(node, (Cache, SourceCache))
    )


def _number_type(blocks: Stack) -> DTypeLike:
    """The type of the blocks' first array of numbers; float32 where they have none.

    Those that stay in float32 whatever the others are do not count, where there are others.
    """
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(blocks, eqx.is_inexact_array))
    usual = [leaf for path, leaf in leaves if not stays_wide(blocks, path)]
    return (usual or [leaf for _, leaf in leaves] or [jnp.zeros((), jnp.float32)])[0].dtype
