"""What a training step changes: the model, the optimizer's memory and the steps done."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Int, PRNGKeyArray

from eqxformer.optimizers.averaged import average_in
from eqxformer.optimizers.trainable import Trainable
from eqxformer.sharding.mirror import beside, everywhere, on_mesh
from eqxformer.sharding.placement import Placement
from eqxformer.training.precision import Precision


class TrainState(eqx.Module):
    """All that changes in training: the model, the optimizer's memory and the steps done.

    `key` is the root of all randomness in the steps; step `i` uses `fold_in(key, i)`. `trains` says
    which arrays of the model the steps change.

    Arguments:
        model: with its weights as they are now.
        optimizer: what the optimizer remembers.
        step: how many steps are done.
        key: the root of the randomness.
        trains: which arrays are trained.

    Example:
        >>> import eqxformer as ef, jax
        >>> mlp = ef.MLP(4, hidden=8, key=jax.random.key(0))
        >>> optimizer = ef.SGD(0.1).build(steps=10)
        >>> state = ef.TrainState.create(mlp, optimizer, key=jax.random.key(1))
        >>> int(state.step), ef.count(state.averaged)
        (0, 76)
    """

    model: Any
    optimizer: Any
    step: Int[Array, ""]
    key: PRNGKeyArray
    trains: Trainable = eqx.field(static=True, default=Trainable())

    @property
    def averaged(self) -> Any:
        """The model with the averages of its weights, where the optimizer keeps any; else as it is.

        See `Averaged`.
        """
        mean = average_in(self.optimizer)
        return self.model if mean is None else eqx.combine(mean, self.model)

    @classmethod
    def create(
        cls,
        model: Any,
        optimizer: optax.GradientTransformation,
        *,
        key: PRNGKeyArray,
        trains: Trainable = Trainable(),
        precision: Precision = Precision(),
    ) -> "TrainState":
        """The state before the first step.

        The arrays are copied: a step gives the memory of its state away, and `model` and `key`
        stay yours. `trains` says which arrays are trained, all by default; `precision` in which
        type these are kept. Of a model that lies on a mesh, arrays that do not, such as adapters
        that it got since, are put there, whole on every device.
        """
        model = jax.tree.map(lambda leaf: _copied(leaf) if eqx.is_array(leaf) else leaf, model)
        model = _on_one_mesh(model)
        trained, frozen = eqx.partition(model, trains.mask(model))
        trained = precision.kept(trained)
        model, memory = eqx.combine(trained, frozen), beside(optimizer.init, trained)
        numbers, kind = _copied(jax.random.key_data(key)), jax.random.key_impl(key)
        own_key = jax.random.wrap_key_data(numbers, impl=kind)
        step, own_key = everywhere((jnp.zeros((), jnp.int32), own_key), like=model)
        return cls(model, memory, step, own_key, trains)


def _copied(array: Array | np.ndarray) -> Array:
    """The same numbers in memory of their own.

    The runtime copies what is here without a program for every shape, which `jnp.copy` compiles; of
    an array that other processes hold a part of, only `jnp.copy` makes another.
    """
    if isinstance(array, Tracer | np.ndarray) or not array.is_fully_addressable:
        return jnp.copy(array)
    return jax.device_put(array, may_alias=False)


def _on_one_mesh(model: Any) -> Any:
    """The model with all arrays on the mesh that some of them lie on, if any does."""
    loose, rest = eqx.partition(model, lambda leaf: eqx.is_array(leaf) and not on_mesh(leaf))
    return eqx.combine(everywhere(loose, like=rest), rest)


def abstract_state(
    model: Any,
    optimizer: optax.GradientTransformation,
    placement: Placement,
    *,
    trains: Trainable = Trainable(),
    precision: Precision = Precision(),
) -> TrainState:
    """The shapes and types of `TrainState.create(...)`, each with the sharding it belongs to.

    Nothing is made. What restores a checkpoint is told by this where to read every array to.

    Arguments:
        model: the model, or its shapes, as `ef.shapes(config)` gives them.
        optimizer, trains, precision: as for `TrainState.create`.
        placement: the mesh and the rules by which arrays lie on it.

    Example:
        >>> import eqxformer as ef, jax
        >>> placement = ef.Placement(ef.abstract_mesh("fsdp=8"))
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8)
        >>> optimizer = ef.AdamW(1e-3).build(steps=100)
        >>> state = ef.abstract_state(ef.shapes(config), optimizer, placement)
        >>> tuple(state.model.embedding.tokens.weight.sharding.spec)
        (None, 'fsdp')
    """

    def made(model: Any, key: PRNGKeyArray) -> TrainState:
        return TrainState.create(model, optimizer, key=key, trains=trains, precision=precision)

    return placement.abstract(eqx.filter_eval_shape(made, model, jax.random.key(0)))
