"""Normalisation over the last axis, computed in float32 whatever the storage type."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from eqxformer.config import Config, takes_options
from eqxformer.layers.linear import along_last
from eqxformer.layers.taps import tap, untapped


class Norm(eqx.Module):
    """What normalises the last axis. A norm of your own subclasses this and its `Config`."""

    class Config(Config):
        """The hyperparameters of a norm."""

        def build(self, dim: int) -> "Norm":
            """The norm over an axis of `dim` numbers."""
            raise NotImplementedError(f"{self.type_name} must define `build`.")

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """`x` normalised over its last axis, in the type of `x`."""


class Identity(Norm):
    """`x`, unchanged: the norm of wiring that has none in that place."""

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return x


class LayerNorm(Norm):
    """Layer normalisation: `(x - mean) / sqrt(var + eps) * weight + bias` (Ba et al. 2016).

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> y = ef.LayerNorm(4)(jnp.array([1.0, 2.0, 3.0, 6.0]))
        >>> float(y.mean().round(3)), float(y.std().round(3))
        (0.0, 1.0)
    """

    class Config(Norm.Config):
        """`eps` keeps the root away from zero; without `gain` and `bias` nothing is learned."""

        eps: float = 1e-5
        bias: bool = True
        gain: bool = True

        def build(self, dim: int) -> "LayerNorm":
            """A `LayerNorm` over `dim` numbers."""
            return LayerNorm(dim, self)

    weight: Float[Array, " dim"] | None
    bias: Float[Array, " dim"] | None
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, config: Config):
        self.weight = jnp.ones(dim, jnp.float32) if config.gain else None
        self.bias = jnp.zeros(dim, jnp.float32) if config.bias else None
        self.config = config

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        wide = widen(x)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.config.eps)
        if self.weight is not None:
            y = y * along_last(widen(self.weight), wide)
        if self.bias is not None:
            y = y + along_last(widen(self.bias), wide)
        return y.astype(x.dtype)


class RMSNorm(Norm):
    """Root-mean-square norm: `x / sqrt(mean(x^2) + eps) * (offset + weight)`.

    Zhang & Sennrich 2019. `offset=1` stores the gain as its distance from one, as Gemma does.
    """

    class Config(Norm.Config):
        """`eps` keeps the root away from zero; `offset` is added to the stored gain."""

        eps: float = 1e-6
        offset: float = 0.0

        def build(self, dim: int) -> "RMSNorm":
            """An `RMSNorm` over `dim` numbers."""
            return RMSNorm(dim, self)

    weight: Float[Array, " dim"]
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, config: Config):
        self.weight = jnp.full(dim, 1.0 - config.offset, jnp.float32)
        self.config = config

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        wide = widen(x)
        root = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.config.eps)
        gain = self.config.offset + widen(self.weight)
        return (wide * root * along_last(gain, wide)).astype(x.dtype)


def build_norm(config: Norm.Config | None, dim: int) -> Norm:
    """The norm of this config, or `Identity` when there is none."""
    return Identity() if config is None else config.build(dim)


def each_norm(config: Norm.Config, dim: int, count: int) -> Norm:
    """So many norms over `dim` numbers in one, their parameters stacked; for `norm_each`."""
    return eqx.filter_vmap(lambda: config.build(dim), axis_size=count)()


def norm_each(
    norms: Norm, x: Float[Array, "*batch heads seq dim"]
) -> Float[Array, "*batch heads seq dim"]:
    """The `i`-th of stacked norms applied to `x[..., i, :, :]`."""
    every = eqx.filter_vmap(
        lambda norm, head: norm(head), in_axes=(eqx.if_array(0), -3), out_axes=-3
    )
    y = every(untapped(norms), tap(norms, "input", x))  # taps see all heads at once
    return tap(norms, "output", y)


def widen(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`x` in float32 at least; float64 stays float64."""
    return x.astype(wide_dtype(x))


def scaled(x: Float[Array, "*any"], factor: float) -> Float[Array, "*any"]:
    """`factor * x` in the type of `x`, rounded once: a small type need not hold the factor."""
    return x if factor == 1.0 else (factor * widen(x)).astype(x.dtype)


def wide_dtype(x: Float[Array, "*any"]) -> DTypeLike:
    """The type in which softmax, norms and tables are computed for `x`."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32
