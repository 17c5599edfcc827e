"""Positions added to the embeddings: learned, or sinusoids."""

import abc
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from eqxformer.config import Config, takes_options
from eqxformer.layers.embedding import lookup
from eqxformer.layers.initializers import Initializer, Normal


class Positions(eqx.Module):
    """What gives a vector to every position.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> class Parity(ef.Positions):
        ...     dim: int
        ...     def __call__(self, positions):
        ...         return jnp.repeat((positions % 2)[..., None], self.dim, axis=-1).astype(float)
        >>> Parity(dim=2)(jnp.arange(3)).tolist()
        [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    """

    class Config(Config):
        """The hyperparameters of a kind of positions."""

        def build(self, dim: int, *, key: PRNGKeyArray) -> "Positions":
            """The positions for a model of this width."""
            raise NotImplementedError(f"{self.type_name} must define `build`.")

    @abc.abstractmethod
    def __call__(self, positions: Int[Array, "*batch seq"]) -> Float[Array, "*batch seq dim"]:
        """A vector per position."""


class LearnedPositions(Positions):
    """A learned vector per position: `weight[position + offset]`.

    A position beyond the table is an error: `ValueError` when called eagerly; under `jit`, where
    no value can be looked at, its vector is NaN, never that of another position.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> positions = ef.LearnedPositions(8, length=16, key=jax.random.key(0))
        >>> positions(jnp.array([[0, 1, 2]])).shape
        (1, 3, 8)
    """

    class Config(Positions.Config):
        """`length` positions; the table has `offset` unused rows in front (OPT, BART: 2)."""

        length: int
        offset: int = 0
        init: Initializer = Normal(0.02)

        def check(self) -> None:
            if self.length < 1 or self.offset < 0:
                raise ValueError(
                    f"`length` must be positive and `offset` not negative; "
                    f"got length={self.length}, offset={self.offset}."
                )

        def build(self, dim: int, *, key: PRNGKeyArray) -> "LearnedPositions":
            """A table of `length + offset` rows."""
            return LearnedPositions(dim, self, key=key)

    weight: Float[Array, "positions dim"]
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, config: Config, *, key: PRNGKeyArray):
        self.weight = config.init(key, (config.length + config.offset, dim))
        self.config = config

    def __call__(self, positions: Int[Array, "*batch seq"]) -> Float[Array, "*batch seq dim"]:
        rows = positions + self.config.offset
        return lookup(self.weight, rows, what="position", first=self.config.offset)


class Sinusoids(Positions):
    """Fixed waves: `sin(p * f[i])` and `cos(p * f[i])` with `f[i] = base^(-2i / dim)`.

    Vaswani et al. 2017. `interleaved` puts sines on even and cosines on odd columns, as the paper
    does; `halves` puts all sines first (Marian). An odd `dim` has one sine more than cosines.
    Frequencies fall from 1 towards `1 / base`: the paper's `open` spread stops a step before it,
    the `closed` one ends there, `f[i] = base^(-i / (dim / 2 - 1))` (tensor2tensor, fairseq).

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> nllb = ef.Sinusoids(8, layout="halves", spread="closed", offset=2)
        >>> nllb(jnp.arange(5)).shape
        (5, 8)
    """

    class Config(Positions.Config):
        """The layout of the columns, the base and spread of the frequencies, and an offset."""

        layout: Literal["interleaved", "halves"] = "interleaved"
        base: float = 10_000.0
        offset: int = 0
        spread: Literal["open", "closed"] = "open"

        def build(self, dim: int, *, key: PRNGKeyArray) -> "Sinusoids":
            """Waves for this width; the key is not used, since nothing is drawn."""
            return Sinusoids(dim, self)

    dim: int = eqx.field(static=True)
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, config: Config):
        if config.spread == "closed" and (dim % 2 or dim < 4):
            raise ValueError(
                f"A closed spread of frequencies needs an even width of at least 4; got {dim}."
            )
        self.dim = dim
        self.config = config

    def __call__(self, positions: Int[Array, "*batch seq"]) -> Float[Array, "*batch seq dim"]:
        coarse, rest = self._turns()
        shape = (*positions.shape, coarse.size)
        where = (positions + self.config.offset).astype(jnp.float32)[..., None]
        turns = where * jnp.broadcast_to(coarse, shape)
        part = turns - jnp.round(turns) + where * jnp.broadcast_to(rest, shape)
        angles = 2.0 * np.pi * part
        sin, cos = jnp.sin(angles), jnp.cos(angles[..., : self.dim // 2])
        if self.config.layout == "halves":
            return jnp.concatenate([sin, cos], axis=-1)
        waves = jnp.zeros((*positions.shape, self.dim), jnp.float32)
        return waves.at[..., 0::2].set(sin).at[..., 1::2].set(cos)

    def _turns(self) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
        """How often each wave turns per place, as a number of 10 bits and the rest of it.

        Float32 holds the product of 10 bits and a place below 2^14 exactly, so that whole turns
        can be taken off it and far places are as exact as near ones.
        """
        last = 2.0 if self.config.spread == "closed" else 0.0
        steps = np.arange(0, self.dim, 2, dtype=np.float64) / (self.dim - last)
        turns = self.config.base**-steps / (2.0 * np.pi)
        mantissa, exponent = np.frexp(turns)
        coarse = np.ldexp(np.round(np.ldexp(mantissa, 10)), exponent - 10)
        return coarse.astype(np.float32), (turns - coarse).astype(np.float32)


class SinusoidTable(Initializer):
    """The vectors that `Sinusoids` gives: for a table that is stored and starts with them.

    Arguments:
        waves: which vectors.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> table = ef.SinusoidTable()(jax.random.key(0), (4, 8))
        >>> bool((table == ef.Sinusoids(8)(jnp.arange(4))).all())
        True
    """

    waves: Sinusoids.Config = Sinusoids.Config()

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        return self.waves.build(shape[-1], key=key)(jnp.arange(shape[0]))
