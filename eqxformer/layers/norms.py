"""Normalisation over the last axis, computed in float32 whatever the storage type."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eqxformer.config import Config, takes_options
from eqxformer.layers.linear import along_last
from eqxformer.layers.taps import tap, untapped
from eqxformer.layers.wide import scaled as scaled
from eqxformer.layers.wide import wide_dtype as wide_dtype
from eqxformer.layers.wide import widen as widen


class Norm(eqx.Module):
    """What normalises the last axis. A norm of your own subclasses this and its `Config`.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> class UnitLength(ef.Norm):
        ...     def __call__(self, x):
        ...         return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        >>> print(UnitLength()(jnp.array([3.0, 4.0])))
        [0.6 0.8]
    """

    class Config(Config):
        """The hyperparameters of a norm."""

        def build(self, dim: int) -> "Norm":
            """The norm over an axis of `dim` numbers."""
            raise NotImplementedError(f"{self.type_name} must define `build`.")

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """`x` normalised over its last axis, in the type of `x`."""


class Identity(Norm):
    """`x`, unchanged: the norm of wiring that has none in that place.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> ef.Identity()(jnp.array([3.0, 4.0])).tolist()
        [3.0, 4.0]
    """

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

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> y = ef.RMSNorm(2)(jnp.array([1.0, 7.0]))  # the root of (1 + 49) / 2 is 5
        >>> [round(number, 3) for number in y.tolist()]
        [0.2, 1.4]
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
