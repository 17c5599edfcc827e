"""Optimizers as values that build an optax chain: clip, scale, decay, learning rate."""

from typing import Any

import jax
import optax

from eqxformer.axes import leaf_axes, leaf_copies
from eqxformer.config import Config
from eqxformer.losses.cross_entropy import check_share
from eqxformer.optimizers.copies import each_copy, factored_moments
from eqxformer.optimizers.schedules import Schedule


class ClipByNorm(Config):
    """Scales all gradients down together so that their global norm is at most `limit`.

    `g * min(1, limit / norm(g))` with the norm of all numbers together (Pascanu et al. 2013).

    Arguments:
        limit: the largest norm.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> clip = ef.ClipByNorm(1.0).build()
        >>> clip.update(jnp.array([3.0, 4.0]), clip.init(None))[0]
        Array([0.6, 0.8], dtype=float32)
    """

    limit: float

    def check(self) -> None:
        _check_positive("limit", self.limit)

    def build(self) -> optax.GradientTransformation:
        """The optax transformation."""
        return optax.clip_by_global_norm(self.limit)


class ClipByValue(Config):
    """Clips every single gradient to `[-limit, limit]`.

    Arguments:
        limit: the largest absolute value.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> clip = ef.ClipByValue(1.0).build()
        >>> clip.update(jnp.array([3.0, -0.5]), clip.init(None))[0]
        Array([ 1. , -0.5], dtype=float32)
    """

    limit: float

    def check(self) -> None:
        _check_positive("limit", self.limit)

    def build(self) -> optax.GradientTransformation:
        """The optax transformation."""
        return optax.clip(self.limit)


class Optimizer(Config):
    """Settings of an optimizer; `build(steps)` makes the optax chain.

    Example:
        >>> import eqxformer as ef, optax
        >>> class SignDescent(ef.Optimizer):
        ...     learning_rate: float = 0.1
        ...     def build(self, steps):
        ...         return optax.sign_sgd(self.learning_rate)
        >>> SignDescent(0.5).rate(step=1, of=10)
        0.5
    """

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax chain for a run of `steps` steps, which schedules end at."""
        raise NotImplementedError(f"{type(self).__name__} must build an optax chain.")

    def rate(self, step: int, *, of: int) -> float:
        """The learning rate of a step, counted from 1, in a run of so many.

        Example:
            >>> import eqxformer as ef
            >>> round(ef.AdamW(ef.WarmupLinear(peak=1e-3, warmup=9)).rate(5, of=100), 6)
            0.0005
        """
        rate: Any = rated(getattr(self, "learning_rate", 0.0), of)
        value: Any = rate(step - 1) if callable(rate) else rate
        return float(value)


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
        check_rate(self.learning_rate)
        _check_betas(self.betas)
        if self.epsilon < 0 or self.weight_decay < 0:
            raise ValueError(
                f"`epsilon` and `weight_decay` must not be negative; "
                f"got {self.epsilon} and {self.weight_decay}."
            )

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax chain for a run of `steps` steps."""
        return optax.chain(
            clipped(self.clip),
            optax.scale_by_adam(b1=self.betas[0], b2=self.betas[1], eps=self.epsilon),
            _decayed(self.weight_decay),
            optax.scale_by_learning_rate(rated(self.learning_rate, steps)),
        )


class Lion(Optimizer):
    """The sign of an interpolated momentum, with decoupled weight decay (Chen et al. 2023).

    `u = sign(b1 m + (1 - b1) g)`, then `m = b2 m + (1 - b2) g`: half of Adam's memory. Every number
    moves by the learning rate, which is therefore a third to a tenth of AdamW's, and the decay as
    much larger. Arguments as for `AdamW`.

    Example:
        >>> import eqxformer as ef
        >>> optimizer = ef.Lion(ef.WarmupCosine(peak=1e-4, warmup=100)).build(steps=2000)
    """

    learning_rate: float | Schedule = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1
    clip: ClipByNorm | ClipByValue | None = None

    def check(self) -> None:
        check_rate(self.learning_rate)
        _check_betas(self.betas)
        check_decay(self.weight_decay)

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax chain for a run of `steps` steps."""
        return optax.chain(
            clipped(self.clip),
            optax.scale_by_lion(b1=self.betas[0], b2=self.betas[1]),
            _decayed(self.weight_decay),
            optax.scale_by_learning_rate(rated(self.learning_rate, steps)),
        )


class Adafactor(Optimizer):
    """Adam whose second moment of a matrix is kept as a row and a column (Shazeer & Stern 2018).

    Where layers or experts are stacked in one array, each of their matrices has its own, and what
    is a vector in each of them stays one.

    Arguments:
        learning_rate: a number, or a schedule; times the root mean square of each parameter where
            `relative` says so, as T5 was trained.
        decay: exponent of the second moment's decay, `1 - step^-decay`.
        limit: what the root mean square of an update is clipped to.
        relative: whether updates are scaled by their parameter.
        momentum: decay of a running mean of updates, or None for none.
        least: axes shorter than this are not factored.
        weight_decay, clip: as for `AdamW`.

    Example:
        >>> import eqxformer as ef
        >>> optimizer = ef.Adafactor(ef.InverseSquareRoot(1e-2, warmup=1000)).build(steps=2000)
    """

    learning_rate: float | Schedule = 1e-2
    decay: float = 0.8
    limit: float = 1.0
    relative: bool = True
    momentum: float | None = None
    least: int = 128
    weight_decay: float = 0.0
    clip: ClipByNorm | ClipByValue | None = None

    def check(self) -> None:
        check_rate(self.learning_rate)
        _check_positive("decay", self.decay)
        _check_positive("limit", self.limit)
        _check_positive("least", self.least)
        check_decay(self.weight_decay)
        if self.momentum is not None:
            check_share("momentum", self.momentum)

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax chain for a run of `steps` steps."""
        return optax.chain(
            clipped(self.clip),
            factored_moments(self.decay, self.least),
            each_copy(optax.clip_by_block_rms(self.limit)),
            each_copy(optax.scale_by_param_block_rms()) if self.relative else optax.identity(),
            optax.ema(self.momentum, debias=False) if self.momentum else optax.identity(),
            _decayed(self.weight_decay),
            optax.scale_by_learning_rate(rated(self.learning_rate, steps)),
        )


class SGD(Optimizer):
    """Stochastic gradient descent, with heavy-ball momentum when `momentum` is above 0.

    `m = momentum * m + gradient`, then `weight = weight - learning_rate * m` (Polyak 1964).

    Arguments:
        learning_rate: a number, or a schedule.
        momentum: decay of the sum of gradients.
        clip: as for `AdamW`.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> optimizer = ef.SGD(0.5).build(steps=10)
        >>> optimizer.update(jnp.array([2.0]), optimizer.init(jnp.array([1.0])))[0]
        Array([-1.], dtype=float32)
    """

    learning_rate: float | Schedule = 0.1
    momentum: float = 0.0
    clip: ClipByNorm | ClipByValue | None = None

    def check(self) -> None:
        check_rate(self.learning_rate)
        check_share("momentum", self.momentum)

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax chain for a run of `steps` steps."""
        rate = rated(self.learning_rate, steps)
        return optax.chain(clipped(self.clip), optax.sgd(rate, momentum=self.momentum or None))


def decays(parameters: Any) -> Any:
    """Which parameters decay: True for matrices, False for norm gains, biases and other vectors.

    The axes in front that only count copies are not counted (layers, experts, the heads of a norm
    with gains for each): the gain of a norm stays a vector when its layers are stacked for a scan.
    """
    axes, copies = leaf_axes(parameters), leaf_copies(parameters)

    def is_matrix(path: tuple[Any, ...], leaf: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        known = len(axes.get(name, ())) == leaf.ndim
        return leaf.ndim - (copies.get(name, 0) if known else 0) >= 2

    return jax.tree_util.tree_map_with_path(is_matrix, parameters)


def clipped(clip: ClipByNorm | ClipByValue | None) -> optax.GradientTransformation:
    """What is done to gradients first."""
    return optax.identity() if clip is None else clip.build()


def rated(rate: float | Schedule, steps: int) -> optax.ScalarOrSchedule:
    """A learning rate as optax takes it."""
    return rate.build(steps) if isinstance(rate, Schedule) else rate


def check_rate(rate: float | Schedule) -> None:
    """Raises `ValueError` for a learning rate below 0."""
    if not isinstance(rate, Schedule) and rate < 0:
        raise ValueError(f"`learning_rate` must not be negative; got {rate}.")


def check_decay(decay: float) -> None:
    """Raises `ValueError` for a weight decay below 0."""
    if decay < 0:
        raise ValueError(f"`weight_decay` must not be negative; got {decay}.")


def _check_betas(betas: tuple[float, float]) -> None:
    if not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"`betas` must be at least 0 and below 1; got {betas}.")


def _decayed(decay: float) -> optax.GradientTransformation:
    return optax.add_decayed_weights(decay, mask=decays) if decay else optax.identity()


def _check_positive(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"`{name}` must be above 0; got {value}.")
