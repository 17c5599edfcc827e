"""What a training step measures of a batch, and the gradient that it learns from."""

import contextlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqxformer.losses.cross_entropy import Loss
from eqxformer.losses.objective import LossFunction
from eqxformer.losses.tokens import objective_of
from eqxformer.training.accumulation import SeenTogether, accumulated, rows_at_once

Metrics = dict[str, Float[Array, ""]]
OfTrained = Callable[[LossFunction], LossFunction]  # a loss as a function of the trained part


def measured_gradients(
    loss: LossFunction,
    of_trained: OfTrained,
    trained: Any,
    batch: Any,
    key: PRNGKeyArray,
    *,
    microbatch: int | None,
    few_at_once: bool = False,
) -> tuple[Metrics, Any]:
    """What the loss measures of a batch, and its gradient in the part of a model that is trained.

    Arguments:
        loss: the loss as `make_step` is given it.
        of_trained: makes a loss of the whole model one of its trained part alone.
        trained: that part.
        batch, key: what the loss is called with.
        microbatch: as for `make_step`.
        few_at_once: whether to take as few rows at a time as `rows_at_once` says.
    """
    if few_at_once:
        rows = rows_at_once(loss, trained, batch)
        with contextlib.suppress(SeenTogether):  # then all of them
            if rows is not None:
                options = {"microbatch": rows, "exactly": True}
                return _in_pieces(loss, of_trained, trained, batch, key, **options)
    if microbatch is not None:
        return _in_pieces(loss, of_trained, trained, batch, key, microbatch=microbatch)
    called = of_trained(loss)

    def measured(trained: Any) -> tuple[Array, Metrics]:
        value = called(trained, batch, key=key)
        return (value.mean, value.means()) if isinstance(value, Loss) else (value, {"loss": value})

    (_, metrics), gradients = eqx.filter_value_and_grad(measured, has_aux=True)(trained)
    return metrics, gradients


def _in_pieces(
    loss: LossFunction,
    of_trained: OfTrained,
    trained: Any,
    batch: Any,
    key: PRNGKeyArray,
    **options: Any,
) -> tuple[Metrics, Any]:
    """The same, of a loss that is a sum or known to be the mean of one."""
    objective = objective_of(loss) or loss
    value, gradients = accumulated(of_trained(objective), trained, batch, key=key, **options)
    return (value.means() if loss is objective else {"loss": value.mean}), gradients


def global_norm(tree: Any) -> Float[Array, ""]:
    """Root of the sum of all squares in a tree of arrays, in float32."""
    leaves = jax.tree.leaves(tree)
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))
