"""Multi-head attention: self and cross, many, grouped or single key heads."""

from typing import Annotated, ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

from eqxformer.axes import Axes
from eqxformer.config import takes_options
from eqxformer.keys import split
from eqxformer.layers.abstract_attention import AbstractAttention
from eqxformer.layers.biases import PositionBias, build_bias, sum_of
from eqxformer.layers.cache import Cache, Seen, SourceCache, empty_cache
from eqxformer.layers.dot_product import Backend, attend
from eqxformer.layers.dropout import check_rate
from eqxformer.layers.head_axis import HeadSum, SumHeads, merge_heads, split_heads
from eqxformer.layers.initializers import Initializer
from eqxformer.layers.linear import AbstractLinear, Linear
from eqxformer.layers.masked_calls import blank_padding, for_cache
from eqxformer.layers.masks import Mask, Window, join, parts, valid_keys
from eqxformer.layers.norms import Norm, build_norm, each_norm, norm_each
from eqxformer.layers.plain_attention import Scoring, attention_weights
from eqxformer.layers.rotary import Rotary
from eqxformer.layers.tapped_attention import ATTENTION_SITES


class Attention(AbstractAttention):
    """Attention: `out(concat over h of softmax(scale * q_h k_h^T + bias) v_h)`.

    Vaswani et al. 2017; with fewer `kv_heads` than `heads`, grouped-query attention (Ainslie et
    al. 2023), and with one, multi-query attention (Shazeer 2019).

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> attention = ef.Attention(32, heads=4, kv_heads=2, key=jax.random.key(0))
        >>> attention(jnp.ones((2, 5, 32)), mask=ef.Causal()).shape
        (2, 5, 32)
    """

    class Config(AbstractAttention.Config):
        """The heads, the projections and what happens between them.

        Arguments:
            heads: query heads.
            kv_heads: key and value heads; as many as query heads if None.
            head_dim: size of a query or key head; `dim / heads` if None.
            value_dim: size of a value head; `head_dim` if None.
            window: how many keys a query sees, the last of which is itself; or a pair, how many
                before and after it; None for no window.
            scale: factor of the scores; `1 / sqrt(head_dim)` if None.
            softcap: bound of the scores, `softcap * tanh(score / softcap)`.
            dropout: probability of dropping an attention weight while training.
            sinks: how a logit per head starts that takes weight from all keys; None for none.
            query, key, value, out: the projections, or `SumHeads()` for no output projection.
            qk_norm: the norm of queries and keys, before positions.
            qk_norm_over: whether that norm is over each head, with parameters that all heads share
                or with each head's own (StableLM, Cohere), or over the whole projection.
            clip: bound of queries, keys and values as they are projected, on both sides (OLMo).
            rotary: rotary positions.
            bias: a bias of the scores by distance.
            backend: the kernel; `auto` is the fastest that can serve.
        """

        kv_heads: int | None = None
        head_dim: int | None = None
        value_dim: int | None = None
        window: int | tuple[int, int] | None = None
        scale: float | None = None
        softcap: float | None = None
        dropout: float = 0.0
        sinks: Initializer | None = None
        query: Linear.Config = Linear.Config()
        key: Linear.Config = Linear.Config()
        value: Linear.Config = Linear.Config()
        out: Linear.Config | SumHeads = Linear.Config()
        qk_norm: Norm.Config | None = None
        qk_norm_over: Literal["head", "each_head", "projection"] = "head"
        clip: float | None = None
        rotary: Rotary | None = None
        bias: PositionBias.Config | None = None
        backend: Backend = "auto"

        def check(self) -> None:
            check_rate("dropout", self.dropout)
            for name in ("heads", "kv_heads", "head_dim", "value_dim"):
                size = getattr(self, name)
                if size is not None and size < 1:
                    raise ValueError(f"`{name}` must be positive; got {size}.")
            if self.heads % (self.kv_heads or self.heads):
                raise ValueError(
                    f"`kv_heads` must divide `heads`; got kv_heads={self.kv_heads}, "
                    f"heads={self.heads}."
                )
            if isinstance(self.window, int) and self.window < 1:
                raise ValueError(f"`window` must be positive; got {self.window}.")
            if isinstance(self.window, tuple) and min(self.window) < 0:
                raise ValueError(f"`window` must not be negative; got {self.window}.")
            for name in ("softcap", "clip"):
                bound = getattr(self, name)
                if bound is not None and bound <= 0:
                    raise ValueError(f"`{name}` must be positive, or None; got {bound}.")

        @property
        def reads_positions(self) -> bool:
            return self.rotary is not None or (self.bias is not None and self.bias.counts_places)

        @property
        def reach(self) -> Window | None:
            """The mask that `window` stands for."""
            if isinstance(self.window, int):
                return Window(self.window - 1, 0)
            return None if self.window is None else Window(*self.window)

        def build(
            self, dim: int, *, source_dim: int | None = None, key: PRNGKeyArray
        ) -> "Attention":
            """Attention in a model of width `dim`, over a source of width `source_dim` or `dim`."""
            return Attention(dim, self, source_dim=source_dim, key=key)

    sites: ClassVar[tuple[str, ...]] = ATTENTION_SITES

    query: Annotated[AbstractLinear, Axes(in_dim="dim", out_dim="heads*head_dim")]
    key: Annotated[AbstractLinear, Axes(in_dim="source_dim", out_dim="kv_heads*head_dim")]
    value: Annotated[AbstractLinear, Axes(in_dim="source_dim", out_dim="kv_heads*value_dim")]
    out: Annotated[AbstractLinear | HeadSum, Axes(in_dim="heads*value_dim", out_dim="dim")]
    query_norm: Annotated[Norm, Axes(dim="head_dim")]
    key_norm: Annotated[Norm, Axes(dim="head_dim")]
    bias: PositionBias | None
    sinks: Float[Array, " heads"] | None
    head_dim: int = eqx.field(static=True)
    value_dim: int = eqx.field(static=True)
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(
        self, dim: int, config: Config, *, source_dim: int | None = None, key: PRNGKeyArray
    ):
        heads, kv_heads = config.heads, config.kv_heads or config.heads
        if config.head_dim is None and dim % heads:
            raise ValueError(
                f"`heads` must divide the model's width; got heads={heads}, dim={dim}. "
                "Or set `head_dim`, which may be any size."
            )
        self.head_dim = head_dim = config.head_dim or dim // heads
        self.value_dim = value_dim = config.value_dim or head_dim
        source_dim = dim if source_dim is None else source_dim
        keys = split(key, 6)
        self.query = config.query.build(dim, heads * head_dim, key=keys[0])
        self.key = config.key.build(source_dim, kv_heads * head_dim, key=keys[1])
        self.value = config.value.build(source_dim, kv_heads * value_dim, key=keys[2])
        self.out = config.out.build(heads * value_dim, dim, key=keys[3])
        self.query_norm = _build_norm(config, heads, head_dim)
        self.key_norm = _build_norm(config, kv_heads, head_dim)
        self.bias = build_bias(config.bias, heads, key=keys[4])
        self.sinks = None if config.sinks is None else config.sinks(keys[5], (1, heads))[0]
        self.config = config
        if config.rotary is not None:
            config.rotary.width(head_dim)

    def __call__(
        self,
        x: Float[Array, "*batch seq dim"],
        source: Float[Array, "*batch keys source_dim"] | None = None,
        *,
        mask: Mask | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        bias: PositionBias | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch seq dim"]:
        """Attention of `x` to itself, or to `source`.

        Arguments:
            mask: who may look at whom; None allows everything.
            positions: for rotary positions; counted from 0 if None.
            bias: a bias of the scores, beside the part's own.
            key: switches dropout on.
        """
        if source is not None:
            if positions is not None:
                raise ValueError("`positions` are for self-attention; got a `source` beside them.")
            return self.look(x, self.remember(source), mask=mask, bias=bias, key=key)
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
        """Self-attention, and the cache with the keys and values of `x` added, if there is one.

        With a cache, queries look at all it holds; padding described by `mask` is not written to
        it. Other arguments are as in `__call__`.
        """
        told = {} if cache is not None else {"valid": valid_keys(mask), "positions": positions}
        query, seen, places, cache = self._prepare(x, mask, positions, cache)
        y = attend(
            query,
            seen.keys,
            seen.values,
            scoring=self._scoring(),
            mask=self._mask(mask, cache),
            places=None if cache is None else places,
            bias=sum_of((self.bias, bias), places, **told),
            backend=self.config.backend,
            key=key,
            part=self,
        )
        y = self.out(merge_heads(y))
        return (y if cache is None else cache.poison(y)), cache

    def look(
        self,
        x: Float[Array, "*batch seq dim"],
        source: SourceCache,
        *,
        mask: Mask | None = None,
        places: Int[Array, "*#batch seq"] | None = None,
        bias: PositionBias | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch seq dim"]:
        """Cross-attention of `x` to a source remembered earlier; `mask` is over the source.

        `places` are those of the queries in their rows, for the mask; counted from 0 if None.

        Raises `NotImplementedError` for a config with rotary positions or a window, which are for
        places in one sequence.
        """
        self._refuse_places()
        seen, counted = blank_padding(source.keys, source.values, mask), _counted(x, source.keys)
        y = attend(
            self._queries(x),
            *seen,
            scoring=self._scoring(),
            mask=mask,
            places=None if places is None else (places, counted[1]),
            bias=sum_of((self.bias, bias), counted),
            backend=self.config.backend,
            key=key,
            part=self,
        )
        return self.out(merge_heads(y))

    def remember(self, source: Float[Array, "*batch keys source_dim"]) -> SourceCache:
        """The keys and values of a source, for `look`."""
        return SourceCache(*self._keys_values(source))

    def weights(
        self,
        x: Float[Array, "*batch seq dim"],
        source: Float[Array, "*batch keys source_dim"] | None = None,
        *,
        mask: Mask | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        bias: PositionBias | None = None,
    ) -> Float[Array, "*batch heads seq keys"]:
        """How much of each key goes into each query's result, per head; arguments as in a call."""
        if source is not None:
            self._refuse_places()
            query, keys, told = self._queries(x), self.remember(source).keys, {}
            places = _counted(x, keys)
        else:
            query, seen, places, _ = self._prepare(x, mask, positions, None)
            told = {"valid": valid_keys(mask), "positions": positions}
            keys, mask = seen.keys, self._mask(mask, None)
        scores_bias = sum_of((self.bias, bias), places, **told)
        return attention_weights(query, keys, scoring=self._scoring(), mask=mask, bias=scores_bias)

    def field_axes(self, field: str) -> Axes | None:
        """What the axes of the norms are, where their annotations do not say it."""
        over = self.config.qk_norm_over
        heads = {"query_norm": "heads", "key_norm": "kv_heads"}.get(field)
        if heads is None or over == "head":
            return None
        if over == "projection":
            return Axes(dim=f"{heads}*head_dim")
        return Axes(dim="head_dim", stacked=heads)

    def init_cache(
        self, batch: tuple[int, ...], slots: int, dtype: DTypeLike = jnp.float32
    ) -> Cache:
        """An empty cache for `slots` tokens per row; a window keeps only its own length."""
        window = self.config.reach
        return empty_cache(
            batch,
            kv_heads=self.config.kv_heads or self.config.heads,
            slots=slots,
            head_dim=self.head_dim,
            value_dim=self.value_dim,
            window=window.left + 1 if window is not None else None,
            dtype=dtype,
        )

    def _prepare(
        self,
        x: Array,
        mask: Mask | None,
        positions: Array | None,
        cache: Cache | None,
    ) -> tuple[Array, Seen, tuple[Array, Array], Cache | None]:
        """Queries, what they look at, the places of both, and the cache with it."""
        seq, valid = x.shape[-2], valid_keys(mask)
        keys, values = blank_padding(*self._keys_values(x), mask)
        at = jnp.arange(seq) if cache is None else cache.places(seq, valid)
        query = self._queries(x)
        if self.config.rotary is not None:
            positions = at if positions is None else positions
            query, keys = (self.config.rotary(a, positions) for a in (query, keys))
        if cache is None:
            return query, Seen(keys, values, at), (at, at), None
        cache, seen = cache.extend(keys, values, valid)
        # The cache may be stored in a smaller type than it is looked at in.
        wide = Seen(seen.keys.astype(x.dtype), seen.values.astype(x.dtype), seen.places)
        return query, wide, (at, seen.places), cache

    def _queries(self, x: Array) -> Array:
        return self._heads(self.query(x), self.head_dim, self.query_norm)

    def _keys_values(self, source: Array) -> tuple[Array, Array]:
        keys = self._heads(self.key(source), self.head_dim, self.key_norm)
        return keys, split_heads(self._clipped(self.value(source)), self.value_dim)

    def _refuse_places(self) -> None:
        for name in ("rotary", "window"):
            value = getattr(self.config, name)
            if value is not None:
                raise NotImplementedError(
                    f"`{name}` is for self-attention; in cross-attention it must be None, "
                    f"got {value}."
                )

    def _heads(self, x: Array, size: int, norm: Norm) -> Array:
        """[*batch seq heads*size] to [*batch heads seq size], normalised before or after."""
        x, over = self._clipped(x), self.config.qk_norm_over
        if over == "projection":
            return split_heads(norm(x), size)
        return (
            norm_each(norm, split_heads(x, size))
            if over == "each_head"
            else norm(split_heads(x, size))
        )

    def _clipped(self, x: Array) -> Array:
        clip = self.config.clip
        return x if clip is None else jnp.clip(x, -clip, clip)

    def _scoring(self) -> Scoring:
        config = self.config
        scale = self.head_dim**-0.5 if config.scale is None else config.scale
        return Scoring(scale, config.softcap, config.dropout, self.sinks)

    def _mask(self, mask: Mask | None, cache: Cache | None) -> Mask | None:
        mask = mask if cache is None else for_cache(mask)
        window = self.config.reach
        return mask if window is None else join((*parts(mask), window))


def _counted(x: Array, keys: Array) -> tuple[Array, Array]:
    """Places of queries and keys of two separate sequences, both counted from 0."""
    return jnp.arange(x.shape[-2]), jnp.arange(keys.shape[-2])


def _build_norm(config: Attention.Config, heads: int, head_dim: int) -> Norm:
    """The norm of queries or of keys."""
    if config.qk_norm is None or config.qk_norm_over == "head":
        return build_norm(config.qk_norm, head_dim)
    if config.qk_norm_over == "projection":
        return config.qk_norm.build(heads * head_dim)
    return each_norm(config.qk_norm, head_dim, heads)
