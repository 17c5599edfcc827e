"""Low-rank adapters: a frozen linear map, and beside it the little that is learned.

`add_lora` puts an `AdaptedLinear` in the place of a `Linear`. The parts that hold it, caches, scans
and experts notice nothing: it is a linear map like any other.
"""

import abc
import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from eqxformer.axes import Axes
from eqxformer.config import Config
from eqxformer.layers.initializers import FanInUniform, Initializer
from eqxformer.layers.linear import AbstractLinear, Groups, Linear, along_last
from eqxformer.layers.wide import wide_dtype, widen


class LoRA(Config):
    """Low-rank adapters: `y = base(x) + scale * up(down(x))` (Hu et al. 2021).

    `down` is drawn and `up` starts at zero, so that a model with new adapters computes what it did.
    Adapters are kept in float32 and computed in the type of their input.

    Arguments:
        rank: the width between `down` and `up`.
        alpha: what the scale is made of.
        scale: how. Over the root of the rank it is rsLoRA, whose updates do not shrink with the
            rank (Kalajdzievski 2023).
        init: how `down` starts.

    Example:
        >>> import eqxformer as ef
        >>> ef.LoRA(rank=16, alpha=32.0).factor
        2.0
        >>> ef.LoRA(rank=16, alpha=32.0, scale="alpha/sqrt(rank)").factor
        8.0
    """

    rank: int = 8
    alpha: float = 16.0
    scale: Literal["alpha/rank", "alpha/sqrt(rank)"] = "alpha/rank"
    init: Initializer = FanInUniform()

    experts: ClassVar[bool] = True  # whether the maps of stacked experts can have such adapters

    def check(self) -> None:
        if self.rank < 1:
            raise ValueError(f"`rank` must be positive; got {self.rank}.")
        if not self.alpha > 0.0:
            raise ValueError(f"`alpha` must be above 0; got {self.alpha}.")

    @property
    def factor(self) -> float:
        """The scale as a number."""
        return self.alpha / self.divisor(self.rank)

    def divisor(self, rank: int) -> float:
        """What `alpha` is divided by at some rank."""
        return float(rank) if self.scale == "alpha/rank" else rank**0.5

    def start(self, down: Float[Array, "in_dim rank"], base: Linear) -> "Adapter":
        """The adapter before training, given what its `down` starts as."""
        return LowRank(*_maps(down, base), self)


class DoRA(LoRA):
    """Adapters with a magnitude per output: `y = magnitude * x @ unit(W + scale * down @ up)`.

    Liu et al. 2024: each output's weights are a direction, which a low-rank adapter turns, and a
    length, which is learned by itself and starts as that of `W`. The norm in `unit` counts as a
    constant in the backward pass (section 4.3 there). It is made anew in every call, which takes
    as long as `rank` rows of input. Arguments as for `LoRA`.

    Example:
        >>> import eqxformer as ef, jax
        >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
        >>> adapted = ef.add_lora(mlp, ef.DoRA(rank=2), to="up", key=jax.random.key(1))
        >>> adapted.up.lora.magnitude.shape
        (16,)
    """

    experts: ClassVar[bool] = False

    def start(self, down: Float[Array, "in_dim rank"], base: Linear) -> "Adapter":
        first, last = _maps(down, base)
        return Decomposed(down=first, up=last, magnitude=norms(base.weight), config=self)


class Adapter(eqx.Module):
    """What is learned beside a frozen linear map, and how the two are one map.

    Arguments:
        down, up: the linear maps from `in_dim` to the rank and from there to `out_dim`.
        config: the `LoRA` or `DoRA` that made it.

    Example:
        >>> import eqxformer as ef, jax
        >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
        >>> adapted = ef.add_lora(mlp, ef.LoRA(rank=2), to="up", key=jax.random.key(1))
        >>> isinstance(adapted.up.lora, ef.Adapter), adapted.up.lora.delta().shape
        (True, (8, 16))
    """

    down: eqx.AbstractVar[Linear]
    up: eqx.AbstractVar[Linear]
    config: eqx.AbstractVar[LoRA]

    @abc.abstractmethod
    def __call__(
        self, x: Float[Array, "*batch in_dim"], base: AbstractLinear
    ) -> Float[Array, "*batch out_dim"]:
        """The adapted map."""

    @abc.abstractmethod
    def merged(self, base: Linear) -> Linear:
        """The one map that computes the same."""

    @abc.abstractmethod
    def unmerged(self, merged: Linear) -> Linear:
        """The base of a merged map, to rounding."""

    @abc.abstractmethod
    def grouped(self, groups: Groups) -> Callable[..., Array]:
        """The adapted maps of stacked experts as one: a function of rows and of their `base`."""

    def delta(self) -> Float[Array, "in_dim out_dim"]:
        """What is added to the weight: `scale * down @ up`, in float32 at least."""
        down, up = (widen(part.weight) for part in (self.down, self.up))
        return self.config.factor * (down @ up)


class LowRank(Adapter):
    """`base(x) + scale * up(down(x))`; see `LoRA`.

    Example:
        >>> import eqxformer as ef, jax
        >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
        >>> lora = ef.add_lora(mlp, ef.LoRA(rank=2), to="up", key=jax.random.key(1)).up.lora
        >>> type(lora).__name__, lora.down.weight.shape, lora.up.weight.shape
        ('LowRank', (8, 2), (2, 16))
    """

    down: Annotated[Linear, Axes(out_dim="rank")]
    up: Annotated[Linear, Axes(in_dim="rank")]
    config: LoRA = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "*batch in_dim"], base: AbstractLinear
    ) -> Float[Array, "*batch out_dim"]:
        return base(x) + added(self.down, self.up, self.config.factor, x)

    def merged(self, base: Linear) -> Linear:
        return _moved(base, self, 1.0)

    def unmerged(self, merged: Linear) -> Linear:
        return _moved(merged, self, -1.0)

    def grouped(self, groups: Groups) -> Callable[..., Array]:
        down, up = self.down.grouped(groups), self.up.grouped(groups)
        factor = self.config.factor
        return lambda x, base: base(x) + added(down, up, factor, x)


class Decomposed(Adapter):
    """`magnitude * x @ unit(W + scale * down @ up)`; see `DoRA`.

    Arguments:
        down, up: as for `LowRank`.
        magnitude: the length of each output's weights.
        config: the `DoRA` that made it.

    Example:
        >>> import eqxformer as ef, jax
        >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
        >>> lora = ef.add_lora(mlp, ef.DoRA(rank=2), to="up", key=jax.random.key(1)).up.lora
        >>> type(lora).__name__, lora.magnitude.shape
        ('Decomposed', (16,))
    """

    in_float32: ClassVar[tuple[str, ...]] = ("magnitude",)

    down: Annotated[Linear, Axes(out_dim="rank")]
    up: Annotated[Linear, Axes(in_dim="rank")]
    magnitude: Float[Array, " out_dim"]
    config: LoRA = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "*batch in_dim"], base: AbstractLinear
    ) -> Float[Array, "*batch out_dim"]:
        plain = base.plain()
        y = base.bare()(x) + added(self.down, self.up, self.config.factor, x)
        # A length that was rounded first would be off by the same part for every row.
        lengths = self._lengths(plain).astype(wide_dtype(y))
        y = (widen(y) * along_last(lengths, y)).astype(y.dtype)
        return y if plain.bias is None else y + along_last(plain.bias, y)

    def merged(self, base: Linear) -> Linear:
        weight = _sum(base.weight, self)
        weight = weight * along_last(self._lengths(base).astype(weight.dtype), weight)
        return Linear.of(weight.astype(base.weight.dtype), base.bias)

    def unmerged(self, merged: Linear) -> Linear:
        raise NotImplementedError(
            "The adapters of `DoRA` cannot be taken out of a merged weight, which does not tell "
            "how long its columns were; keep the model that was merged, or load it again."
        )

    def grouped(self, groups: Groups) -> Callable[..., Array]:
        raise NotImplementedError("Experts can have the adapters of `LoRA`, not of `DoRA`.")

    def _lengths(self, base: Linear) -> Float[Array, " out_dim"]:
        """What each output is multiplied by; a direction of zeros has none and stays zero."""
        adapter, base = jax.tree.map(jax.lax.stop_gradient, (self, base))
        norm = norms(_sum(base.weight, adapter))
        magnitude = self.magnitude.astype(jnp.float32)
        return magnitude / jnp.where(norm == 0.0, 1.0, norm)


class AdaptedLinear(AbstractLinear):
    """A linear map with an adapter; `base` is frozen where only adapters are trained.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
        >>> adapted = ef.add_lora(mlp, ef.LoRA(rank=2), to=("up",), key=jax.random.key(1))
        >>> print(ef.table(adapted.up))
        base.weight   in_dim=8 out_dim=16  Linear  128  512 B
        base.bias              out_dim=16  Linear   16  64 B
        lora.down.weight  in_dim=8 rank=2  Linear   16  64 B
        lora.up.weight  rank=2 out_dim=16  Linear   32  128 B
        total                                      192  768 B
    """

    base: AbstractLinear
    lora: Adapter

    def __call__(self, x: Float[Array, "*batch in_dim"]) -> Float[Array, "*batch out_dim"]:
        return self.lora(x, self.base)

    def plain(self) -> Linear:
        return self.lora.merged(self.base.plain())

    def bare(self) -> "AdaptedLinear":
        return AdaptedLinear(self.base.bare(), self.lora)

    def grouped(self, groups: Groups) -> Callable[[Array], Array]:
        return functools.partial(self.lora.grouped(groups), base=self.base.grouped(groups))


def norms(weight: Float[Array, "in_dim out_dim"]) -> Float[Array, " out_dim"]:
    """The Euclidean length of each output's weights, in float32."""
    return jnp.sqrt(jnp.square(weight.astype(jnp.float32)).sum(0))


def added(
    down: Callable[[Array], Array],
    up: Callable[[Array], Array],
    factor: float,
    x: Float[Array, "*batch in_dim"],
) -> Float[Array, "*batch out_dim"]:
    """`factor * up(down(x))`, in the type of `x`."""
    return factor * in_type(up, x.dtype)(in_type(down, x.dtype)(x))


def in_type(part: Any, dtype: DTypeLike) -> Any:
    """A part with its floating-point arrays in another type."""
    return jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, part)


def _maps(down: Array, base: Linear) -> tuple[Linear, Linear]:
    up = jnp.zeros((down.shape[1], base.weight.shape[1]), jnp.float32)
    return Linear.of(down, None), Linear.of(up, None)


def _moved(linear: Linear, adapter: Adapter, times: float) -> Linear:
    """The map with the `delta` of an adapter added to its weight, which keeps its type."""
    weight = _sum(linear.weight, adapter, times)
    return Linear.of(weight.astype(linear.weight.dtype), linear.bias)


def _sum(weight: Array, adapter: Adapter, times: float = 1.0) -> Array:
    """A weight and the `delta` of an adapter, not yet rounded to the type of the weight."""
    return widen(weight) + times * in_type(adapter, wide_dtype(weight)).delta()
