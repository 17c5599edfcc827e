"""Learning rates as values: each schedule is a formula of the step, counted from 0."""

from typing import Self

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from eqxformer.config import Config


class Schedule(Config):
    """A learning rate that changes from step to step; `build(steps)` makes it a function.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> class Halfway(ef.Schedule):
        ...     peak: float
        ...     def build(self, steps):
        ...         return lambda step: jnp.where(step < steps // 2, self.peak, self.peak / 4)
        >>> [ef.AdamW(Halfway(peak=1.0)).rate(step, of=100) for step in (1, 50, 51)]
        [1.0, 1.0, 0.25]
    """

    @property
    def ends(self) -> bool:
        """Whether the rate depends on how many steps the run has."""
        return True

    def build(self, steps: int) -> optax.Schedule:
        """A function from the step (0 is the first) to the rate, for a run of `steps` steps."""
        raise NotImplementedError(f"{type(self).__name__} must say how its rate is computed.")

    def scaled(self, factor: float) -> Self:
        """This schedule with all its rates times `factor`.

        Example:
            >>> import eqxformer as ef
            >>> ef.WarmupCosine(peak=1.0, warmup=9, final=0.5).scaled(0.5)
            WarmupCosine(peak=0.5, warmup=9, final=0.25)
        """
        rates = (name for name in ("start", "peak", "final") if hasattr(self, name))
        return self.edit(**{name: factor * getattr(self, name) for name in rates})


class WarmupCosine(Schedule):
    """Linear to `peak` in `warmup` steps, then half a cosine down to `final` at the end of the run.

    Loshchilov and Hutter 2017. The first step already has a rate above 0. `final` is what the step
    behind the last would have: the last has a little more, and with `final=0` is no step lost.

    Example:
        >>> import eqxformer as ef
        >>> rate = ef.WarmupCosine(peak=1.0, warmup=9, final=0.1).build(steps=109)
        >>> [round(float(rate(step)), 3) for step in (0, 8, 9, 59, 109)]
        [0.1, 0.9, 1.0, 0.55, 0.1]
    """

    peak: float
    warmup: int = 0
    final: float = 0.0

    def check(self) -> None:
        _check_rates(peak=self.peak, final=self.final)
        _check_count("warmup", self.warmup, 0)

    def build(self, steps: int) -> optax.Schedule:
        """The rate for a run of `steps` steps."""

        def rate(step: ArrayLike) -> Float[Array, ""]:
            done = _share_after(step, self.warmup, steps)
            cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
            falling = self.final + (self.peak - self.final) * cosine
            return _warmed_up(step, self.warmup, 0.0, self.peak, falling)

        return rate


class WarmupLinear(Schedule):
    """Linear to `peak` in `warmup` steps, then linear down to `final` at the end of the run.

    `peak * (step + 1) / (warmup + 1)`, and from step `warmup` on
    `peak + (final - peak) * (step - warmup) / (steps - warmup)`.

    Arguments:
        peak: the highest rate.
        warmup: steps until it is reached.
        final: the rate that the step behind the last would have.

    Example:
        >>> import eqxformer as ef
        >>> rate = ef.WarmupLinear(peak=1.0, warmup=9, final=0.1).build(steps=109)
        >>> [round(float(rate(step)), 3) for step in (0, 8, 9, 59, 109)]
        [0.1, 0.9, 1.0, 0.55, 0.1]
    """

    peak: float
    warmup: int = 0
    final: float = 0.0

    def check(self) -> None:
        _check_rates(peak=self.peak, final=self.final)
        _check_count("warmup", self.warmup, 0)

    def build(self, steps: int) -> optax.Schedule:
        """The rate for a run of `steps` steps."""

        def rate(step: ArrayLike) -> Float[Array, ""]:
            done = _share_after(step, self.warmup, steps)
            falling = self.peak + (self.final - self.peak) * done
            return _warmed_up(step, self.warmup, 0.0, self.peak, falling)

        return rate


class WarmupStableDecay(Schedule):
    """Linear to `peak` in `warmup` steps, `peak` for long, linear to `final` in the last `decay`.

    `final` is what the step behind the last would have. The decay does not begin before the warm-up
    is over. Hu et al. 2024: a run can be made without knowing its end from the start. Without a
    decay (0) it may be given more steps afterwards.

    Example:
        >>> import eqxformer as ef
        >>> rate = ef.WarmupStableDecay(peak=1.0, warmup=9, decay=20).build(steps=100)
        >>> [round(float(rate(step)), 3) for step in (0, 9, 80, 90, 100)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
    """

    peak: float
    warmup: int = 0
    decay: int = 0
    final: float = 0.0

    def check(self) -> None:
        _check_rates(peak=self.peak, final=self.final)
        _check_count("warmup", self.warmup, 0)
        _check_count("decay", self.decay, 0)

    @property
    def ends(self) -> bool:
        return self.decay > 0

    def build(self, steps: int) -> optax.Schedule:
        """The rate for a run of `steps` steps, which matters to the decay alone."""

        def rate(step: ArrayLike) -> Float[Array, ""]:
            begin = max(steps - self.decay, self.warmup)
            done = _share_after(step, begin, steps) if self.decay else jnp.zeros((), jnp.float32)
            falling = self.peak + (self.final - self.peak) * done
            return _warmed_up(step, self.warmup, 0.0, self.peak, falling)

        return rate


class WarmupExponential(Schedule):
    """Linear from `start` to `peak` in `warmup` steps, then times `factor` every `every` steps.

    From step `warmup` on it is `peak * factor ** ((step - warmup) / every)`.

    Arguments:
        peak: the highest rate.
        warmup: steps until it is reached.
        start: where the warm-up begins.
        factor, every: what the rate is times after so many steps.

    Example:
        >>> import eqxformer as ef
        >>> rate = ef.WarmupExponential(peak=1.0, warmup=10, factor=0.5, every=20).build(steps=100)
        >>> [round(float(rate(step)), 3) for step in (10, 30, 50)]
        [1.0, 0.5, 0.25]
    """

    peak: float
    warmup: int = 0
    start: float = 0.0
    factor: float = 0.5
    every: int = 1000

    def check(self) -> None:
        _check_rates(peak=self.peak, start=self.start, factor=self.factor)
        _check_count("warmup", self.warmup, 0)
        _check_count("every", self.every, 1)

    @property
    def ends(self) -> bool:
        return False

    def build(self, steps: int) -> optax.Schedule:
        """The rate for a run of any number of steps."""

        def rate(step: ArrayLike) -> Float[Array, ""]:
            periods = jnp.maximum(_float(step) - self.warmup, 0.0) / self.every
            falling = self.peak * self.factor**periods
            return _warmed_up(step, self.warmup, self.start, self.peak, falling)

        return rate


class InverseSquareRoot(Schedule):
    """Linear to `peak` in `warmup` steps, then `peak * sqrt(warmup / step)`.

    Vaswani et al. 2017, who also scale it by `1 / sqrt(dim * warmup)`. In the last `cooldown`
    steps, but not before the warm-up is over, it is times the share of these that is left, down
    to 0, which the step behind the last would have (Zhai et al. 2022, section 3.4).

    Arguments:
        peak: the highest rate.
        warmup: steps until it is reached.
        cooldown: steps at the end in which it goes down towards 0; 0 for none.

    Example:
        >>> import eqxformer as ef
        >>> rate = ef.InverseSquareRoot(peak=1.0, warmup=100).build(steps=10_000)
        >>> [round(float(rate(step)), 3) for step in (100, 400, 10_000)]
        [1.0, 0.5, 0.1]
    """

    peak: float
    warmup: int = 4000
    cooldown: int = 0

    def check(self) -> None:
        _check_rates(peak=self.peak)
        _check_count("warmup", self.warmup, 1)
        _check_count("cooldown", self.cooldown, 0)

    @property
    def ends(self) -> bool:
        return self.cooldown > 0

    def build(self, steps: int) -> optax.Schedule:
        """The rate for a run of `steps` steps, which matters to the cooldown alone."""

        def rate(step: ArrayLike) -> Float[Array, ""]:
            falling = self.peak * jnp.sqrt(self.warmup / jnp.maximum(_float(step), self.warmup))
            if self.cooldown:
                begin = max(steps - self.cooldown, self.warmup)
                falling = falling * (1.0 - _share_after(step, begin, steps))
            return _warmed_up(step, self.warmup, 0.0, self.peak, falling)

        return rate


def _float(step: ArrayLike) -> Float[Array, ""]:
    return jnp.asarray(step).astype(jnp.float32)


def _share_after(step: ArrayLike, warmup: int, steps: int) -> Float[Array, ""]:
    """How much of the steps behind the warm-up is done, from 0 to 1."""
    return jnp.clip((_float(step) - warmup) / max(steps - warmup, 1), 0.0, 1.0)


def _warmed_up(
    step: ArrayLike, warmup: int, start: float, peak: float, falling: Float[Array, ""]
) -> Float[Array, ""]:
    # One more step than `warmup` in the divisor: a first step with rate 0 would be a step lost.
    rising = start + (peak - start) * (_float(step) + 1.0) / (warmup + 1)
    return jnp.where(_float(step) < warmup, rising, falling)


def _check_rates(**rates: float) -> None:
    for name, rate in rates.items():
        if rate < 0:
            raise ValueError(f"`{name}` must not be negative; got {rate}.")


def _check_count(name: str, count: int, least: int) -> None:
    if count < least:
        raise ValueError(f"`{name}` must be at least {least}; got {count}.")
