"""The first broken numbers of a training step, found by doing it once more under a watch."""

from typing import Any

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from eqxformer.inspect.watch import Fault, Watch
from eqxformer.losses.cross_entropy import Loss
from eqxformer.losses.objective import LossFunction
from eqxformer.training.accumulation import pieces
from eqxformer.training.precision import Precision
from eqxformer.training.step import TrainState


def first_fault(
    watch: Watch,
    loss: LossFunction,
    state: TrainState,
    batch: Any,
    *,
    microbatch: int | None = None,
    precision: Precision = Precision(),
) -> Fault | None:
    """The first fault of the step that `state` has behind it and that changed nothing of it.

    It is done again as it was done: with the same key, types and microbatches. Arguments as in
    `make_step`, whose `skips_nonfinite` leaves such a state behind; None where all is sound.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> from eqxformer.training.watching import first_fault
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8)
        >>> model = config.build(key=jax.random.key(0))
        >>> model = ef.patch(model, {"blocks.0.feed_forward": lambda x: x / 0.0})
        >>> optimizer = ef.SGD(0.1).build(steps=1)
        >>> state = ef.TrainState.create(model, optimizer, key=jax.random.key(1))
        >>> batch = ef.TokenBatch(jnp.arange(18).reshape(2, 9))
        >>> first_fault(ef.Watch(), ef.NextToken(), state, batch).name
        'blocks.0.feed_forward'
    """
    model = precision.computing(state.model)
    key = jax.random.fold_in(state.key, state.step - 1)
    for part, own in pieces(batch, microbatch, key):
        fault = watch.gradient(model, part, call=_mean_of(loss), key=own)
        if fault is not None:
            return fault
    return None


def _mean_of(loss: LossFunction) -> Any:
    def mean(model: Any, batch: Any, *, key: PRNGKeyArray | None) -> Float[Array, ""]:
        value = loss(model, batch, key=key)
        return value.mean if isinstance(value, Loss) else value

    return mean
