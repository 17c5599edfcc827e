"""A loss that compares the model with another one, which is not trained: a teacher, a reference."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from eqxformer.losses.cross_entropy import Loss
from eqxformer.losses.objective import Objective


class Comparison(Objective):
    """An objective that compares the model with a frozen one; `against(frozen)` is the loss.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> class SquaredDistance(ef.Comparison):
        ...     def compare(self, model, frozen, batch, /, *, key=None):
        ...         apart = jnp.square(model(batch) - frozen(batch))
        ...         return ef.Loss(apart.sum(), jnp.float32(apart.size))
        >>> loss = SquaredDistance().against(jnp.zeros_like)
        >>> float(loss(lambda x: x + 1, jnp.ones(3)).mean)
        4.0
    """

    def compare(
        self, model: Any, frozen: Any, batch: Any, /, *, key: PRNGKeyArray | None = None
    ) -> Loss:
        """The loss over a batch; a key switches dropout on, in `model` alone."""
        raise NotImplementedError(f"{self.type_name} must say what it compares.")

    def against(self, frozen: Any) -> "Against":
        """The loss of a model beside `frozen`, for `make_step`, `Trainer` and `evaluator`."""
        return Against(frozen, self)


class Against(eqx.Module):
    """A comparison and the frozen model in it: `comparison.compare(model, frozen, batch)`.

    A step takes the arrays of its loss as arguments, so that a large model is no constant of the
    compiled program. No optimizer sees the frozen model, no gradient goes into it, it is not cast
    by a step's `Precision`, and it never has dropout. Its arrays stay where they were put, on one
    device or over several.

    Arguments:
        frozen: the model that is compared with.
        comparison: how.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> teacher = lambda tokens, *, key=None: jnp.zeros((*tokens.shape, 4))
        >>> student = lambda tokens, *, key=None: jnp.ones((*tokens.shape, 4))
        >>> loss = ef.Against(teacher, ef.Distillation(soft=1.0))
        >>> round(float(loss(student, ef.TokenBatch(jnp.array([[1, 2, 3]]))).mean), 6)
        0.0
    """

    frozen: Any
    comparison: Comparison = eqx.field(static=True)

    @property
    def splits(self) -> bool:
        """Whether the loss of a batch is the sum of those of its rows."""
        return self.comparison.splits

    def __call__(self, model: Any, batch: Any, /, *, key: PRNGKeyArray | None = None) -> Loss:
        """The loss over a batch; a key switches dropout on."""
        frozen = jax.tree.map(
            lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, self.frozen
        )
        return self.comparison.compare(model, frozen, batch, key=key)
