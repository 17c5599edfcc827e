"""Averaged weights: an exponential moving average that an optimizer keeps beside its memory."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from eqxformer.losses.cross_entropy import check_share
from eqxformer.optimizers.optimizer import Optimizer


class Averaged(Optimizer):
    """Another optimizer, and the exponential moving average of the weights that it makes.

    After step `t`, counted from 1, `mean = d * mean + (1 - d) * weights` with
    `d = min(decay, (1 + t) / (10 + t))`, so that the start is soon forgotten (as in TensorFlow's
    `ExponentialMovingAverage`). Averages are kept in float32 and do not enter training.
    `state.averaged` is the model with them; validation, samples and what is saved use it.

    Arguments:
        optimizer: what changes the weights.
        decay: share of the average that a step leaves as it is.

    Example:
        >>> import eqxformer as ef
        >>> optimizer = ef.Averaged(ef.AdamW(1e-3), decay=0.999).build(steps=2000)
    """

    optimizer: Optimizer
    decay: float = 0.999

    def check(self) -> None:
        check_share("decay", self.decay)

    def rate(self, step: int, *, of: int) -> float:
        return self.optimizer.rate(step, of=of)

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax chain for a run of `steps` steps."""
        inner = self.optimizer.build(steps)

        def init(params: Any) -> Average:
            mean = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params)
            return Average(inner.init(params), mean, jnp.zeros((), jnp.int32))

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Average]:
            changes, memory = inner.update(updates, state.optimizer, params)
            count = state.steps + 1
            t = count.astype(jnp.float32)
            decay = jnp.minimum(jnp.float32(self.decay), (1.0 + t) / (10.0 + t))

            def moved(mean: Array, weight: Array, change: Array) -> Array:
                new = (weight + change.astype(weight.dtype)).astype(jnp.float32)
                return mean + (1.0 - decay) * (new - mean)

            mean = jax.tree.map(moved, state.mean, params, changes)
            return changes, Average(memory, mean, count)

        return optax.GradientTransformation(init, update)


class Average(NamedTuple):
    """What `Averaged` remembers: the inner optimizer's memory, the averages, the steps so far."""

    optimizer: Any
    mean: Any
    steps: Int[Array, ""]


def average_in(memory: Any) -> Any:
    """The averages in an optimizer's memory, a tree like the model's; None without `Averaged`."""
    leaves = jax.tree.leaves(memory, is_leaf=lambda node: isinstance(node, Average))
    return next((leaf.mean for leaf in leaves if isinstance(leaf, Average)), None)
