"""From token ids to the residual stream: tokens, positions, types, norm, dropout."""

from typing import Annotated, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from eqxformer.axes import Axes
from eqxformer.config import Config, takes_options
from eqxformer.keys import split
from eqxformer.layers.dropout import check_rate, dropout
from eqxformer.layers.embedding import Embedding, lookup
from eqxformer.layers.initializers import Initializer, Normal
from eqxformer.layers.linear import AbstractLinear, Linear
from eqxformer.layers.norms import Norm, build_norm, scaled
from eqxformer.layers.positions import Positions


class TypeEmbedding(eqx.Module):
    """A vector per token type (segment), as in BERT.

    `y = weight[types]`; types outside the table are refused as ids outside a vocabulary are.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> segments = ef.TypeEmbedding(8, count=2, key=jax.random.key(0))
        >>> segments(jnp.array([[0, 0, 1]])).shape
        (1, 3, 8)
    """

    class Config(Config):
        """How many types, and how their vectors start."""

        count: int = 2
        init: Initializer = Normal(0.02)

        def check(self) -> None:
            if self.count < 1:
                raise ValueError(f"`count` of token types must be positive; got {self.count}.")

        def build(self, dim: int, *, key: PRNGKeyArray) -> "TypeEmbedding":
            """A table of `count` rows."""
            return TypeEmbedding(dim, self, key=key)

    weight: Float[Array, "types dim"]

    @takes_options
    def __init__(self, dim: int, config: Config, *, key: PRNGKeyArray):
        self.weight = config.init(key, (config.count, dim))

    def __call__(self, types: Int[Array, "*batch seq"]) -> Float[Array, "*batch seq dim"]:
        return lookup(self.weight, types, what="token type")


class InputEmbedding(eqx.Module):
    """What enters the first block: `dropout(norm(scale * tokens[id] + positions[p] + types[t]))`.

    Tables may be narrower than the model; a projection then brings their sum to its width.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> config = ef.InputEmbedding.Config(positions=ef.Sinusoids.Config(), scale="sqrt(dim)")
        >>> config.build(10, 8, key=jax.random.key(0))(jnp.array([1, 2, 3])).shape
        (3, 8)
    """

    class Config(Config):
        """The token table, what is added to it, and what is done with the sum.

        Arguments:
            tokens: the token table.
            scale: factor of the token's vector: a number, or one that follows from the width of the
                model; `rounded` to the type of the table, as Gemma was trained.
            positions, types: what is added for the place and the type of a token.
            norm, dropout: what is done with the sum, in this order.
            width: width of the tables; None for that of the model, and no projection.
            project: from `width` to the model's.
            projected: what goes through it: the sum, last of all (ALBERT, ELECTRA), or the token's
                vector before anything is added to it (OPT-350m).
        """

        tokens: Embedding.Config = Embedding.Config()
        scale: float | Literal["sqrt(dim)", "1/sqrt(dim)", "rounded sqrt(dim)"] = 1.0
        positions: Positions.Config | None = None
        types: TypeEmbedding.Config | None = None
        norm: Norm.Config | None = None
        dropout: float = 0.0
        width: int | None = None
        project: Linear.Config = Linear.Config()
        projected: Literal["sum", "tokens"] = "sum"

        def check(self) -> None:
            check_rate("dropout", self.dropout)
            if self.width is not None and self.width < 1:
                raise ValueError(f"`width` must be positive, or None; got {self.width}.")

        def build(self, vocab: int, dim: int, *, key: PRNGKeyArray) -> "InputEmbedding":
            """The embedding of a model with this vocabulary and width."""
            return InputEmbedding(vocab, dim, self, key=key)

    tokens: Embedding | None
    positions: Positions | None
    types: TypeEmbedding | None
    norm: Norm
    project: Annotated[AbstractLinear, Axes(in_dim="width", out_dim="dim")] | None
    scale: float = eqx.field(static=True)
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, vocab: int, dim: int, config: Config, *, key: PRNGKeyArray):
        keys = split(key, 4)
        width = config.width or dim
        summed = width if config.projected == "sum" else dim
        positions, types = config.positions, config.types
        self.tokens = config.tokens.build(vocab, width, key=keys[0])
        self.positions = None if positions is None else positions.build(summed, key=keys[1])
        self.types = None if types is None else types.build(summed, key=keys[2])
        self.norm = build_norm(config.norm, summed)
        self.project = None
        if config.width is not None:
            self.project = config.project.build(width, dim, key=keys[3])
        power = dim ** (-0.5 if config.scale == "1/sqrt(dim)" else 0.5)
        self.scale = power if isinstance(config.scale, str) else config.scale
        self.config = config

    def __call__(
        self,
        tokens: Int[Array, "*batch seq"],
        *,
        table: Embedding | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        types: Int[Array, "*batch seq"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch seq dim"]:
        """The vectors of these tokens.

        Arguments:
            table: the token table, for a model that shares another's.
            positions: the place of every token; counted from 0 if None.
            types: the type of every token; all 0 if None.
            key: switches dropout on.

        Raises `ValueError` for types where there is no table of them.
        """
        x = self._projected("tokens", self._scaled(self.table(table)(tokens)))
        if self.positions is not None:
            positions = jnp.arange(tokens.shape[-1]) if positions is None else positions
            added = self.positions(positions).astype(x.dtype)
            x = x + jnp.broadcast_to(added, x.shape)
        if self.types is None and types is not None:
            raise ValueError(
                "This model has no token types; set `types=TypeEmbedding.Config()` in its "
                "embedding."
            )
        if self.types is not None:
            x = x + self.types(jnp.zeros_like(tokens) if types is None else types)
        return self._projected("sum", dropout(self.norm(x), self.config.dropout, key))

    def table(self, shared: Embedding | None = None) -> Embedding:
        """The token table: its own, or the shared one where it has none."""
        if self.tokens is not None and shared is not None:
            raise ValueError("This embedding has its own token table; pass no `table`.")
        table = shared if self.tokens is None else self.tokens
        if table is None:
            raise ValueError("This embedding shares another's token table; pass it as `table`.")
        return table

    def field_axes(self, field: str) -> Axes | None:
        """The words of the tables, where they are narrower than the model."""
        summed = ("tokens", "positions", "types", "norm")
        narrow = summed if self.config.projected == "sum" else ("tokens",)
        inside = self.config.width is not None and field in narrow
        return Axes(dim="width") if inside else None

    def _scaled(self, x: Array) -> Array:
        rounded = self.config.scale == "rounded sqrt(dim)"
        return scaled(x, float(np.asarray(self.scale, x.dtype)) if rounded else self.scale)

    def _projected(self, what: Literal["tokens", "sum"], x: Array) -> Array:
        """`x` in the model's width, where it is what the projection is for."""
        project = self.project if self.config.projected == what else None
        return x if project is None else project(x)


def places(
    seq: int, valid: Array | None, positions: Int[Array, "*#batch seq"] | None
) -> Int[Array, "*#batch seq"]:
    """The positions given, or those that count a row's real tokens from 0.

    Padding counts as the token that follows it, so that left-padded rows start at 0 too. Raises
    `ValueError` for a `valid` of another length than `seq`.
    """
    if valid is not None and valid.shape[-1] != seq:
        raise ValueError(
            f"`Padding.valid` describes {valid.shape[-1]} tokens; this call has {seq}."
        )
    if positions is not None:
        return positions
    if valid is None:
        return jnp.arange(seq, dtype=jnp.int32)
    counted = jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - 1
    return jnp.maximum(counted, 0)
