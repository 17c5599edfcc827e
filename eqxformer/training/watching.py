"""The first broken numbers of a training step, found by doing it once more under a watch."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from eqxformer.inspect.watch import Fault, Watch
from eqxformer.losses.cross_entropy import Loss
from eqxformer.losses.objective import LossFunction
from eqxformer.losses.tokens import objective_of
from eqxformer.training.accumulation import pieces, rows_at_once
from eqxformer.training.flat import Flat
from eqxformer.training.precision import Precision
from eqxformer.training.state import TrainState


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
        >>> mlp = ef.patch(ef.MLP(4, hidden=8, key=jax.random.key(0)), {"up": lambda x: x / 0.0})
        >>> state = ef.TrainState.create(mlp, ef.SGD(0.1).build(steps=1), key=jax.random.key(1))
        >>> loss = lambda model, batch, key: model(batch).sum()
        >>> first_fault(ef.Watch(), loss, state, jnp.ones((2, 4))).name
        'up'
    """
    model = precision.computing(state.model)
    key = jax.random.fold_in(state.key, state.step - 1)
    if microbatch is None and not (flat := Flat.of(state)).spread and flat.on_cpu:
        microbatch = _few_at_once(loss, state, batch)
    for part, own in pieces(batch, microbatch, key):
        fault = watch.gradient(model, part, call=_Mean(loss), key=own)
        if fault is not None:
            return fault
    return None


def _few_at_once(loss: LossFunction, state: TrainState, batch: Any) -> int | None:
    """The rows whose gradients the step has made at once; None for all."""
    objective = objective_of(loss)
    trained = eqx.filter(state.model, state.trains.mask(state.model))
    rows = rows_at_once(loss, trained, batch)
    if rows is None or objective is None:
        return None
    value = eqx.filter_eval_shape(objective, state.model, batch, key=state.key)
    return None if value.penalties else rows


class _Mean(eqx.Module):
    """A loss as a scalar."""

    loss: LossFunction

    def __call__(self, model: Any, batch: Any, *, key: PRNGKeyArray | None) -> Float[Array, ""]:
        value = self.loss(model, batch, key=key)
        return value.mean if isinstance(value, Loss) else value
