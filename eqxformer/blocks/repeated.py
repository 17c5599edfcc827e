"""Blocks run several times over with one set of weights."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from eqxformer.blocks.block import AbstractBlock, Context
from eqxformer.config import takes_options
from eqxformer.keys import fold, split
from eqxformer.layers.feed_forward import RouterLosses
from eqxformer.traces import traced_once


class Repeated(AbstractBlock):
    """Blocks in a row, run `times` over with the same weights (ALBERT, Lan et al. 2020).

    To a stack they are one block. Each run has a cache and a key of its own, as if there were as
    many blocks.

    Example:
        >>> import eqxformer as ef
        >>> block = ef.Block.Config(ef.Attention.Config(heads=2), ef.MLP.Config(hidden=64))
        >>> albert = ef.Encoder.Config(
        ...     vocab=65, dim=16, blocks=(ef.Repeated.Config(blocks=(block,), times=12),)
        ... )
        >>> ef.count(ef.shapes(albert)) == ef.count(ef.shapes(albert.edit(blocks=(block,))))
        True
    """

    class Config(AbstractBlock.Config):
        """The blocks of one run, and how many runs there are."""

        blocks: tuple[AbstractBlock.Config, ...]
        times: int

        def check(self) -> None:
            if self.times < 1 or not self.blocks:
                raise ValueError(
                    "`times` must be positive and `blocks` not empty; "
                    f"got times={self.times}, {len(self.blocks)} blocks."
                )

        @property
        def reads_source(self) -> bool:
            return any(block.reads_source for block in self.blocks)

        @property
        def reads_positions(self) -> bool:
            return any(block.reads_positions for block in self.blocks)

        def build(
            self, dim: int, *, source_dim: int | None = None, key: PRNGKeyArray
        ) -> "Repeated":
            """The blocks of a model of width `dim`, with a source of width `source_dim`."""
            return Repeated(dim, self, source_dim=source_dim, key=key)

    blocks: tuple[AbstractBlock, ...]
    times: int = eqx.field(static=True)

    @takes_options
    def __init__(
        self, dim: int, config: Config, *, source_dim: int | None = None, key: PRNGKeyArray
    ):
        keys = split(key, len(config.blocks))
        pairs = zip(config.blocks, keys, strict=True)
        self.blocks = tuple(b.build(dim, source_dim=source_dim, key=k) for b, k in pairs)
        self.times = config.times

    def run(
        self,
        x: Float[Array, "*batch seq dim"],
        context: Context,
        *,
        cache: tuple[Any, ...] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*batch seq dim"], tuple[Any, ...] | None, RouterLosses | None]:
        run, caches, losses = traced_once(_run), [], []
        for i, block in enumerate(self.blocks * self.times):
            before = None if cache is None else cache[i]
            x, after, loss = run(block, x, context, before, fold(key, i))
            caches.append(after)
            losses += [] if loss is None else [loss]
        total = jax.tree.map(lambda *each: sum(each), *losses) if losses else None
        return x, None if cache is None else tuple(caches), total

    def init_cache(
        self,
        batch: tuple[int, ...],
        slots: int,
        *,
        source: Float[Array, "*batch keys source_dim"] | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> tuple[Any, ...]:
        return tuple(
            block.init_cache(batch, slots, source=source, dtype=dtype)
            for block in self.blocks * self.times
        )


def _run(
    block: AbstractBlock, x: Array, context: Context, cache: Any, key: PRNGKeyArray | None
) -> tuple[Array, Any, RouterLosses | None]:
    return block.run(x, context, cache=cache, key=key)
