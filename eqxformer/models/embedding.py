"""From token ids to the residual stream: tokens, positions, types, norm, dropout."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from eqxformer.config import Config, takes_options
from eqxformer.layers.dropout import check_rate, dropout
from eqxformer.layers.embedding import Embedding, lookup
from eqxformer.layers.initializers import Initializer, Normal
from eqxformer.layers.norms import Norm, build_norm
from eqxformer.layers.positions import Positions


class TypeEmbedding(eqx.Module):
    """A vector per token type (segment), as in BERT."""

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

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> config = ef.InputEmbedding.Config(positions=ef.Sinusoids.Config(), scale="sqrt(dim)")
        >>> config.build(10, 8, key=jax.random.key(0))(jnp.array([1, 2, 3])).shape
        (3, 8)
    """

    class Config(Config):
        """The token table, what is added to it, and what is done with the sum.

        `scale` multiplies the token's vector: a number, or one that follows from the width.
        """

        tokens: Embedding.Config = Embedding.Config()
        scale: float | Literal["sqrt(dim)", "1/sqrt(dim)"] = 1.0
        positions: Positions.Config | None = None
        types: TypeEmbedding.Config | None = None
        norm: Norm.Config | None = None
        dropout: float = 0.0

        def check(self) -> None:
            check_rate("dropout", self.dropout)

        def build(self, vocab: int, dim: int, *, key: PRNGKeyArray) -> "InputEmbedding":
            """The embedding of a model with this vocabulary and width."""
            return InputEmbedding(vocab, dim, self, key=key)

    tokens: Embedding | None
    positions: Positions | None
    types: TypeEmbedding | None
    norm: Norm
    scale: float = eqx.field(static=True)
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, vocab: int, dim: int, config: Config, *, key: PRNGKeyArray):
        tokens, positions, types = jax.random.split(key, 3)
        powers = {"sqrt(dim)": dim**0.5, "1/sqrt(dim)": dim**-0.5}
        self.tokens = config.tokens.build(vocab, dim, key=tokens)
        self.positions = (
            None if config.positions is None else config.positions.build(dim, key=positions)
        )
        self.types = None if config.types is None else config.types.build(dim, key=types)
        self.norm = build_norm(config.norm, dim)
        self.scale = powers[config.scale] if isinstance(config.scale, str) else config.scale
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
        x = self.scale * self.table(table)(tokens)
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
        return dropout(self.norm(x), self.config.dropout, key)

    def table(self, shared: Embedding | None = None) -> Embedding:
        """The token table: its own, or the shared one where it has none."""
        if self.tokens is not None and shared is not None:
            raise ValueError("This embedding has its own token table; pass no `table`.")
        table = shared if self.tokens is None else self.tokens
        if table is None:
            raise ValueError("This embedding shares another's token table; pass it as `table`.")
        return table


def places(
    seq: int, valid: Array | None, positions: Int[Array, "*#batch seq"] | None
) -> Int[Array, "*#batch seq"]:
    """The positions given, or those that count a row's real tokens from 0.

    Padding counts as the token that follows it, so that left-padded rows start at 0 too.
    """
    if positions is not None:
        return positions
    if valid is None:
        return jnp.arange(seq)
    counted = jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - 1
    return jnp.maximum(counted, 0)
