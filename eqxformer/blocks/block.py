"""A transformer block: attention, cross-attention if there is a source, feed-forward."""

import abc
from typing import Annotated, Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PRNGKeyArray

from eqxformer.axes import Axes
from eqxformer.blocks.residual import Residual, pre_norm
from eqxformer.config import Config, takes_options
from eqxformer.keys import split
from eqxformer.layers.abstract_attention import AbstractAttention
from eqxformer.layers.attention import Attention
from eqxformer.layers.biases import PositionBias
from eqxformer.layers.cache import Cache, SourceCache
from eqxformer.layers.dropout import check_rate, dropout
from eqxformer.layers.feed_forward import FeedForward, RouterLosses
from eqxformer.layers.masked_calls import reads_places
from eqxformer.layers.masks import Mask, valid_keys
from eqxformer.layers.norms import LayerNorm, Norm, build_norm


class Context(eqx.Module):
    """What all blocks of one call share.

    Arguments:
        mask: who may look at whom in self-attention.
        positions: for rotary positions; None counts from 0, or from what a cache holds.
        bias: a bias of the self-attention scores, shared by all blocks (T5).
        source: what cross-attention looks at; not needed where a cache remembers it.
        source_mask: who may look at what in the source.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> context = ef.Context(mask=ef.Causal() & ef.Padding(jnp.array([False, True, True])))
        >>> print(context.mask.draw(3))
        · · ·
        · ■ ·
        · ■ ■
    """

    mask: Mask | None = None
    positions: Int[Array, "*#batch seq"] | None = None
    bias: PositionBias | None = None
    source: Float[Array, "*batch keys source_dim"] | None = None
    source_mask: Mask | None = None


class BlockCache(eqx.Module):
    """What one block remembers: its own keys and values, and those of the source.

    Arguments:
        attention: what self-attention remembers.
        source: the keys and values of the source; None where cross-attention has none.

    Example:
        >>> import eqxformer as ef
        >>> model = ef.shapes(ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8))
        >>> cache = model.blocks[0].init_cache((3,), slots=8)
        >>> cache.attention.keys.shape, cache.source
        ((3, 2, 8, 8), None)
    """

    attention: Cache
    source: SourceCache | None


class AbstractBlock(eqx.Module):
    """One layer of a stack. A block of your own subclasses this and its `Config`.

    Caching, scanning, rematerialisation and generation come from the stack; a block supplies its
    step (`run`) and an empty cache, which may be of any kind: `run` gets what `init_cache` or the
    last `run` has returned. Every array of it begins with the axes of the batch.

    In a program, blocks that are alike share one trace (`traces.py`): what `run` makes it returns,
    or names with `tap`, since a list beside it would hold values of another function.

    Generation pads prompts, and leaves finished rows alone by padding, so a cache must leave out
    what `valid_keys(context.mask)` says is no token of a row.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> class Doubling(ef.AbstractBlock):
        ...     def run(self, x, context, *, cache=None, key=None):
        ...         return 2 * x, cache, None
        ...     def init_cache(self, batch, slots, *, source=None, dtype=jnp.float32):
        ...         return None  # it looks at no other token
        >>> Doubling()(jnp.array([[1.0, 2.0]])).tolist()
        [[2.0, 4.0]]
    """

    class Config(Config):
        """The hyperparameters of a block."""

        @property
        def reads_source(self) -> bool:
            """Whether the block looks at a source; a block of your own that does says True."""
            return False

        @property
        def reads_positions(self) -> bool:
            """Whether places matter beside the mask; one of your own that needs none says False."""
            return True

        def build(
            self, dim: int, *, source_dim: int | None = None, key: PRNGKeyArray
        ) -> "AbstractBlock":
            """The block of a model of width `dim`; `source_dim` is a source's, None for none."""
            raise NotImplementedError(f"{self.type_name} must define `build`.")

    @abc.abstractmethod
    def run(
        self,
        x: Float[Array, "*batch seq dim"],
        context: Context,
        *,
        cache: Any = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*batch seq dim"], Any, RouterLosses | None]:
        """The block's output, its cache with `x` added, and its router's losses."""

    @abc.abstractmethod
    def init_cache(
        self,
        batch: tuple[int, ...],
        slots: int,
        *,
        source: Float[Array, "*batch keys source_dim"] | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> Any:
        """An empty cache; a source, if there is one, is remembered in it."""

    def __call__(
        self,
        x: Float[Array, "*batch seq dim"],
        source: Float[Array, "*batch keys source_dim"] | None = None,
        *,
        mask: Mask | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        source_mask: Mask | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch seq dim"]:
        """The block's output alone; a key switches dropout on."""
        context = Context(mask, positions, None, source, source_mask)
        return self.run(x, context, key=key)[0]


class Block(AbstractBlock):
    """A block: residual self-attention, residual cross-attention if any, residual feed-forward.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> block = ef.Block(
        ...     16,
        ...     attention=ef.Attention.Config(heads=2),
        ...     feed_forward=ef.MLP.Config(hidden=64),
        ...     key=jax.random.key(0),
        ... )
        >>> block(jnp.ones((2, 5, 16)), mask=ef.Causal()).shape
        (2, 5, 16)
    """

    class Config(AbstractBlock.Config):
        """The parts and, for each, its residual wiring; pre-norm layer norm unless said."""

        attention: AbstractAttention.Config
        feed_forward: FeedForward.Config
        cross_attention: Attention.Config | None = None
        attention_residual: Residual.Config = pre_norm()
        cross_residual: Residual.Config = pre_norm()
        feed_forward_residual: Residual.Config = pre_norm()

        @property
        def reads_source(self) -> bool:
            return self.cross_attention is not None

        @property
        def reads_positions(self) -> bool:
            return self.attention.reads_positions

        def build(self, dim: int, *, source_dim: int | None = None, key: PRNGKeyArray) -> "Block":
            """The block of a model of width `dim`, with a source of width `source_dim`."""
            return Block(dim, self, source_dim=source_dim, key=key)

    attention: Annotated[AbstractAttention, Axes(source_dim="dim")]
    cross_attention: Attention | None
    feed_forward: FeedForward
    attention_residual: Residual
    cross_residual: Residual | None
    feed_forward_residual: Residual

    @takes_options
    def __init__(
        self, dim: int, config: Config, *, source_dim: int | None = None, key: PRNGKeyArray
    ):
        attention, cross, feed_forward = split(key, 3)
        self.attention = config.attention.build(dim, key=attention)
        self.feed_forward = config.feed_forward.build(dim, key=feed_forward)
        self.attention_residual = config.attention_residual.build(dim)
        self.feed_forward_residual = config.feed_forward_residual.build(dim)
        self.cross_attention = self.cross_residual = None
        if config.cross_attention is not None:
            self.cross_attention = config.cross_attention.build(
                dim, source_dim=source_dim, key=cross
            )
            self.cross_residual = config.cross_residual.build(dim)

    def run(
        self,
        x: Float[Array, "*batch seq dim"],
        context: Context,
        *,
        cache: BlockCache | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*batch seq dim"], BlockCache | None, RouterLosses | None]:
        keys = split(key, 6)
        x, attention_cache = self.attention_residual.run(
            x,
            lambda h: self.attention.run(
                h,
                mask=context.mask,
                positions=context.positions,
                bias=context.bias,
                cache=None if cache is None else cache.attention,
                key=keys[0],
            ),
            key=keys[1],
        )
        x = self._look(x, context, cache, keys[2], keys[3])
        valid = _counted(context, cache)
        x, losses = self.feed_forward_residual.run(
            x, lambda h: self.feed_forward.run_valid(h, valid, key=keys[4]), key=keys[5]
        )
        if cache is None or attention_cache is None:
            return x, None, losses
        return x, BlockCache(attention_cache, cache.source), losses

    def init_cache(
        self,
        batch: tuple[int, ...],
        slots: int,
        *,
        source: Float[Array, "*batch keys source_dim"] | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> BlockCache:
        remembered = None
        if self.cross_attention is not None and source is not None:
            _refuse_bias(self.cross_attention)
            remembered = self.cross_attention.remember(source)
        return BlockCache(self.attention.init_cache(batch, slots, dtype), remembered)

    def _look(
        self,
        x: Array,
        context: Context,
        cache: BlockCache | None,
        key: PRNGKeyArray | None,
        residual_key: PRNGKeyArray | None,
    ) -> Array:
        """Cross-attention to the source, remembered or given; `x` where the block has none."""
        cross, residual = self.cross_attention, self.cross_residual
        if cross is None or residual is None:
            return x
        places = None  # from 0 on, as in a call without a cache
        if cache is not None:
            _refuse_bias(cross)
            if reads_places(context.source_mask):
                places = cache.attention.places(x.shape[-2], valid_keys(context.mask))
        remembered = None if cache is None else cache.source
        if remembered is None:
            if context.source is None:
                raise ValueError("This block has cross-attention and needs a `source`; got none.")
            remembered = cross.remember(context.source)
        return residual(
            x,
            lambda h: cross.look(h, remembered, mask=context.source_mask, places=places, key=key),
            key=residual_key,
        )


def _counted(context: Context, cache: BlockCache | None) -> Bool[Array, "*batch seq"] | None:
    """Which tokens count in a router's losses; None for all. With a cache nobody trains."""
    return valid_keys(context.mask) if cache is None else None


def _refuse_bias(cross: AbstractAttention) -> None:
    """Raises `NotImplementedError` for a cross-attention that cannot be used with a cache."""
    if getattr(cross, "bias", None) is not None:
        raise NotImplementedError(
            "The bias of a cross-attention counts queries from the first of a call, which with a "
            "cache is every token: models that have one cannot be used with it."
        )


class ParallelBlock(AbstractBlock):
    """A block whose branches run side by side: `x + attention(norm(x)) + feed_forward(norm2(x))`.

    GPT-J and PaLM use one norm for both branches (`feed_forward_norm=None`), GPT-NeoX two.

    Example:
        >>> import eqxformer as ef
        >>> block = ef.ParallelBlock.Config(ef.Attention.Config(heads=2), ef.MLP.Config(hidden=32))
        >>> model = ef.shapes(ef.DecoderLM.Config(vocab=65, dim=16, blocks=(block,)))
        >>> model.blocks[0].norm.weight.shape, model.blocks[0].feed_forward_norm
        ((16,), None)
    """

    class Config(AbstractBlock.Config):
        """The parts, the norms before them, and dropout after them."""

        attention: AbstractAttention.Config
        feed_forward: FeedForward.Config
        norm: Norm.Config = LayerNorm.Config()
        feed_forward_norm: Norm.Config | None = None
        dropout: float = 0.0

        def check(self) -> None:
            check_rate("dropout", self.dropout)

        @property
        def reads_positions(self) -> bool:
            return self.attention.reads_positions

        def build(
            self, dim: int, *, source_dim: int | None = None, key: PRNGKeyArray
        ) -> "ParallelBlock":
            """The block of a model of width `dim`; it does not look at a source."""
            return ParallelBlock(dim, self, key=key)

    attention: Annotated[AbstractAttention, Axes(source_dim="dim")]
    feed_forward: FeedForward
    norm: Norm
    feed_forward_norm: Norm | None
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, config: Config, *, key: PRNGKeyArray):
        attention, feed_forward = split(key, 2)
        self.attention = config.attention.build(dim, key=attention)
        self.feed_forward = config.feed_forward.build(dim, key=feed_forward)
        self.norm = build_norm(config.norm, dim)
        second = config.feed_forward_norm
        self.feed_forward_norm = None if second is None else second.build(dim)
        self.config = config

    def run(
        self,
        x: Float[Array, "*batch seq dim"],
        context: Context,
        *,
        cache: BlockCache | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*batch seq dim"], BlockCache | None, RouterLosses | None]:
        keys, rate = split(key, 4), self.config.dropout
        h = self.norm(x)
        attended, attention_cache = self.attention.run(
            h,
            mask=context.mask,
            positions=context.positions,
            bias=context.bias,
            cache=None if cache is None else cache.attention,
            key=keys[0],
        )
        h = h if self.feed_forward_norm is None else self.feed_forward_norm(x)
        valid = _counted(context, cache)
        fed, losses = self.feed_forward.run_valid(h, valid, key=keys[1])
        x = x + dropout(attended, rate, keys[2]) + dropout(fed, rate, keys[3])
        new = None if attention_cache is None else BlockCache(attention_cache, None)
        return x, new, losses

    def init_cache(
        self,
        batch: tuple[int, ...],
        slots: int,
        *,
        source: Float[Array, "*batch keys source_dim"] | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> BlockCache:
        return BlockCache(self.attention.init_cache(batch, slots, dtype), None)
