"""Multi-head latent attention: keys and values made from one small vector per token."""

from typing import Annotated, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

from eqxformer.axes import Axes
from eqxformer.config import takes_options
from eqxformer.keys import split
from eqxformer.layers.abstract_attention import AbstractAttention
from eqxformer.layers.biases import PositionBias, sum_of
from eqxformer.layers.cache import Cache, Seen, empty_cache
from eqxformer.layers.dot_product import attend
from eqxformer.layers.dropout import check_rate
from eqxformer.layers.head_axis import merge_heads, split_heads
from eqxformer.layers.linear import AbstractLinear, Linear
from eqxformer.layers.masked_calls import blank_padding, for_cache
from eqxformer.layers.masks import Mask, valid_keys
from eqxformer.layers.norms import Norm, RMSNorm, build_norm
from eqxformer.layers.plain_attention import Scoring
from eqxformer.layers.rotary import Rotary
from eqxformer.layers.tapped_attention import ATTENTION_SITES

_BARE = Linear.Config(bias=False)


class LatentAttention(AbstractAttention):
    """Latent attention: `k_h = [key_h(c), r]`, `v_h = value_h(c)`, with `c = norm(latent(x))`.

    DeepSeek-AI 2024. Only the latent `c` and the rotated `r = rotate(rotary_key(x))`, which all
    heads share, go into the cache. Of each query head the last `rotary_dim` numbers are rotated.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> attention = ef.LatentAttention(
        ...     32, heads=4, latent=16, head_dim=12, rotary_dim=4, key=jax.random.key(0)
        ... )
        >>> attention(jnp.ones((2, 5, 32)), mask=ef.Causal()).shape
        (2, 5, 32)
        >>> attention.init_cache((2,), slots=10).values.shape
        (2, 1, 10, 16)
    """

    class Config(AbstractAttention.Config):
        """The sizes, the projections and what happens between them.

        Arguments:
            heads: heads of queries, keys and values.
            latent: width of what keys and values are made from.
            head_dim: size of a query or key head, with the numbers that are rotated.
            rotary_dim: how many of them are rotated.
            value_dim: size of a value head; `head_dim - rotary_dim` if None.
            query_latent: width of what queries are made from; None for the token itself.
            scale: factor of the scores; `1 / sqrt(head_dim)` if None.
            dropout: probability of dropping an attention weight while training.
            norm: the norm of both latents.
            rotary: how the rotated numbers turn.
            to_query_latent, query, to_latent, rotary_key, key, value, out: the projections.
        """

        latent: int
        head_dim: int
        rotary_dim: int
        value_dim: int | None = None
        query_latent: int | None = None
        scale: float | None = None
        dropout: float = 0.0
        norm: Norm.Config | None = RMSNorm.Config()
        rotary: Rotary = Rotary(layout="interleaved")
        to_query_latent: Linear.Config = _BARE
        query: Linear.Config = _BARE
        to_latent: Linear.Config = _BARE
        rotary_key: Linear.Config = _BARE
        key: Linear.Config = _BARE
        value: Linear.Config = _BARE
        out: Linear.Config = _BARE

        def check(self) -> None:
            check_rate("dropout", self.dropout)
            for name in ("heads", "latent", "rotary_dim", "value_dim", "query_latent"):
                size = getattr(self, name)
                if size is not None and size < 1:
                    raise ValueError(f"`{name}` must be positive; got {size}.")
            if self.head_dim <= self.rotary_dim:
                raise ValueError(
                    "`head_dim` counts the rotated numbers too and must be above `rotary_dim`; "
                    f"got head_dim={self.head_dim}, rotary_dim={self.rotary_dim}."
                )
            self.rotary.width(self.rotary_dim)

        def build(self, dim: int, *, key: PRNGKeyArray) -> "LatentAttention":
            """Latent attention in a model of width `dim`."""
            return LatentAttention(dim, self, key=key)

    sites: ClassVar[tuple[str, ...]] = ATTENTION_SITES

    to_query_latent: Annotated[AbstractLinear, Axes(in_dim="dim", out_dim="query_latent")] | None
    query_norm: Annotated[Norm, Axes(dim="query_latent")]
    query: Annotated[AbstractLinear, Axes(in_dim="query_latent", out_dim="heads*head_dim")]
    to_latent: Annotated[AbstractLinear, Axes(in_dim="dim", out_dim="latent")]
    latent_norm: Annotated[Norm, Axes(dim="latent")]
    rotary_key: Annotated[AbstractLinear, Axes(in_dim="dim", out_dim="rotary_dim")]
    key: Annotated[AbstractLinear, Axes(in_dim="latent", out_dim="heads*plain_dim")]
    value: Annotated[AbstractLinear, Axes(in_dim="latent", out_dim="heads*value_dim")]
    out: Annotated[AbstractLinear, Axes(in_dim="heads*value_dim", out_dim="dim")]
    value_dim: int = eqx.field(static=True)
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, config: Config, *, key: PRNGKeyArray):
        keys, heads = split(key, 7), config.heads
        plain = config.head_dim - config.rotary_dim
        self.value_dim = plain if config.value_dim is None else config.value_dim
        self.to_query_latent, self.query_norm, width = None, build_norm(None, dim), dim
        if config.query_latent is not None:
            width = config.query_latent
            self.to_query_latent = config.to_query_latent.build(dim, width, key=keys[0])
            self.query_norm = build_norm(config.norm, width)
        self.query = config.query.build(width, heads * config.head_dim, key=keys[1])
        self.to_latent = config.to_latent.build(dim, config.latent, key=keys[2])
        self.latent_norm = build_norm(config.norm, config.latent)
        self.rotary_key = config.rotary_key.build(dim, config.rotary_dim, key=keys[3])
        self.key = config.key.build(config.latent, heads * plain, key=keys[4])
        self.value = config.value.build(config.latent, heads * self.value_dim, key=keys[5])
        self.out = config.out.build(heads * self.value_dim, dim, key=keys[6])
        self.config = config

    def __call__(
        self,
        x: Float[Array, "*batch seq dim"],
        *,
        mask: Mask | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        bias: PositionBias | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch seq dim"]:
        """Attention of `x` to itself; arguments as in `run`."""
        return self.run(x, mask=mask, positions=positions, bias=bias, key=key)[0]

    def run(
        self,
        x: Float[Array, "*batch seq dim"],
        *,
        mask: Mask | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        bias: PositionBias | None = None,
        cache: Cache | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*batch seq dim"], Cache | None]:
        config, seq, valid = self.config, x.shape[-2], valid_keys(mask)
        at = jnp.arange(seq) if cache is None else cache.places(seq, valid)
        told = {} if cache is not None else {"valid": valid, "positions": positions}
        positions = at if positions is None else positions
        turned, latent = blank_padding(*self._latents(x, positions), mask)
        seen = Seen(turned, latent, at)
        if cache is not None:
            cache, seen = cache.extend(turned, latent, valid)
        keys, values = self._expand(seen.keys.astype(x.dtype), seen.values.astype(x.dtype))
        scale = config.head_dim**-0.5 if config.scale is None else config.scale
        y = attend(
            self._queries(x, positions),
            keys,
            values,
            scoring=Scoring(scale, dropout=config.dropout),
            mask=mask if cache is None else for_cache(mask),
            places=None if cache is None else (at, seen.places),
            bias=sum_of((bias,), (at, seen.places), **told),
            key=key,
            part=self,
        )
        y = self.out(merge_heads(y))
        return (y if cache is None else cache.poison(y)), cache

    def init_cache(
        self, batch: tuple[int, ...], slots: int, dtype: DTypeLike = jnp.float32
    ) -> Cache:
        """An empty cache for the latents of `slots` tokens per row."""
        return empty_cache(
            batch,
            kv_heads=1,
            slots=slots,
            head_dim=self.config.rotary_dim,
            value_dim=self.config.latent,
            window=None,
            dtype=dtype,
        )

    def field_axes(self, field: str) -> Axes | None:
        """What queries are made from, where that is the token itself."""
        if field != "query" or self.to_query_latent is not None:
            return None
        return Axes(in_dim="dim", out_dim="heads*head_dim")

    def _queries(self, x: Array, positions: Array) -> Array:
        h = x if self.to_query_latent is None else self.to_query_latent(x)
        query = split_heads(self.query(self.query_norm(h)), self.config.head_dim)
        plain = self.config.head_dim - self.config.rotary_dim
        turned = self.config.rotary(query[..., plain:], positions)
        return jnp.concatenate([query[..., :plain], turned], axis=-1)

    def _latents(self, x: Array, positions: Array) -> tuple[Array, Array]:
        """What is remembered of each token, as one head: the rotated key and the latent."""
        turned = self.config.rotary(self.rotary_key(x)[..., None, :, :], positions)
        return turned, self.latent_norm(self.to_latent(x))[..., None, :, :]

    def _expand(self, turned: Array, latent: Array) -> tuple[Array, Array]:
        """Keys and values of every head."""
        one = latent[..., 0, :, :]
        keys = split_heads(self.key(one), self.config.head_dim - self.config.rotary_dim)
        shared = jnp.broadcast_to(turned, (*keys.shape[:-1], turned.shape[-1]))
        keys = jnp.concatenate([keys, shared], axis=-1)
        return keys, split_heads(self.value(one), self.value_dim)
