"""Optimizers as values that build an optax chain: clip, scale, decay, learning rate."""

from typing import Any

import equinox as eqx
import jax
import optax

from eqxformer.axes import leaf_axes
from eqxformer.config import Config
from eqxformer.training.schedules import Schedule


class ClipByNorm(Config):
    """Scales all gradients down together so that their global norm is at most `limit`."""

    limit: float

    def check(self) -> None:
        _check_positive("limit", self.limit)

    def build(self) -> optax.GradientTransformation:
        """The optax transformation."""
        return optax.clip_by_global_norm(self.limit)


class ClipByValue(Config):
    """Clips every single gradient to `[-limit, limit]`."""

    limit: float

    def check(self) -> None:
        _check_positive("limit", self.limit)

    def build(self) -> optax.GradientTransformation:
        """The optax transformation."""
        return optax.clip(self.limit)


class Optimizer(Config):
    """Settings of an optimizer; `build(steps)` makes the optax chain."""

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax chain for a run of `steps` steps, which schedules end at."""
        raise NotImplementedError(f"{type(self).__name__} must build an optax chain.")


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019); plain Adam with decay 0.

    Arguments:
        learning_rate: a number, or a schedule such as `WarmupCosine(peak=1e-3, warmup=100)`.
        betas: decay of the running means of the gradient and of its square.
        epsilon: added to the root of the mean square.
        weight_decay: share of a weight taken off in a step, times the learning rate. Only
            matrices decay: see `decays`.
        clip: what is done to the gradients first.

    Example:
        >>> import eqxformer as ef
        >>> settings = ef.AdamW(ef.WarmupCosine(peak=1e-3, warmup=100), clip=ef.ClipByNorm(1.0))
        >>> optimizer = settings.build(steps=2000)
    """

    learning_rate: float | Schedule = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    clip: ClipByNorm | ClipByValue | None = None

    def check(self) -> None:
        _check_rate(self.learning_rate)
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"`betas` must be at least 0 and below 1; got {self.betas}.")
        if self.epsilon < 0 or self.weight_decay < 0:
            raise ValueError(
                f"`epsilon` and `weight_decay` must not be negative; "
                f"got {self.epsilon} and {self.weight_decay}."
            )

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax chain for a run of `steps` steps."""
        return optax.chain(
            _clip(self.clip),
            optax.scale_by_adam(b1=self.betas[0], b2=self.betas[1], eps=self.epsilon),
            optax.add_decayed_weights(self.weight_decay, mask=decays)
            if self.weight_decay
            else optax.identity(),
            optax.scale_by_learning_rate(_rate(self.learning_rate, steps)),
        )


class SGD(Optimizer):
    """Stochastic gradient descent, with heavy-ball momentum when `momentum` is above 0."""

    learning_rate: float | Schedule = 0.1
    momentum: float = 0.0
    clip: ClipByNorm | ClipByValue | None = None

    def check(self) -> None:
        _check_rate(self.learning_rate)
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"`momentum` must be at least 0 and below 1; got {self.momentum}.")

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax chain for a run of `steps` steps."""
        rate = _rate(self.learning_rate, steps)
        return optax.chain(_clip(self.clip), optax.sgd(rate, momentum=self.momentum or None))


def decays(parameters: Any) -> Any:
    """Which parameters decay: True for matrices, False for norm gains, biases and other vectors.

    The axes that only count copies, `layers` and `experts`, are not counted: the gain of a norm
    stays a vector when its layers are stacked for a scan.
    """
    axes = leaf_axes(parameters)

    def is_matrix(path: tuple[Any, ...], leaf: Any) -> bool:
        words = axes.get(jax.tree_util.keystr(path, simple=True, separator="."))
        if words is None or len(words) != leaf.ndim:
            return leaf.ndim >= 2
        return sum(word not in ("layers", "experts") for word in words) >= 2

    return jax.tree_util.tree_map_with_path(is_matrix, parameters)


def trainable(model: Any) -> Any:
    """The arrays that an optimizer changes: those of a floating type, everything else None."""
    return eqx.filter(model, eqx.is_inexact_array)


def _clip(clip: ClipByNorm | ClipByValue | None) -> optax.GradientTransformation:
    return optax.identity() if clip is None else clip.build()


def _rate(rate: float | Schedule, steps: int) -> optax.ScalarOrSchedule:
    return rate.build(steps) if isinstance(rate, Schedule) else rate


def _check_rate(rate: float | Schedule) -> None:
    if not isinstance(rate, Schedule) and rate < 0:
        raise ValueError(f"`learning_rate` must not be negative; got {rate}.")


def _check_positive(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"`{name}` must be above 0; got {value}.")
