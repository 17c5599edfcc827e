"""One training step: the state, and a compiled function from a state to the next one.

Training starts reading here. A loop of your own is three lines:

    step = make_step(next_token_loss, optimizer)
    for batch in batches:
        state, metrics = step(state, batch)
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from eqxformer.losses.cross_entropy import Loss
from eqxformer.losses.objective import LossFunction
from eqxformer.losses.tokens import objective_of
from eqxformer.optimizers.averaged import average_in
from eqxformer.optimizers.trainable import Trainable
from eqxformer.sharding.mirror import beside, everywhere, on_mesh
from eqxformer.sharding.placement import Placement
from eqxformer.training.accumulation import (
    SeenTogether,
    accumulated,
    check_microbatch,
    check_splits,
    rows_at_once,
)
from eqxformer.training.flat import Flat, Spread
from eqxformer.training.precision import Precision

Metrics = dict[str, Float[Array, ""]]


class Step(Protocol):
    """One training step, compiled when it is first called."""

    def __call__(self, state: "TrainState", batch: Any, /) -> "tuple[TrainState, Metrics]": ...

    def lower(self, state: "TrainState", batch: Any, /) -> Any:
        """The program, as of `jax.jit`: `step.lower(state, batch).compile().memory_analysis()`."""
        ...


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


def make_step(
    loss: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    microbatch: int | None = None,
    precision: Precision = Precision(),
    skips_nonfinite: bool = False,
) -> Step:
    """A compiled function `step(state, batch) -> (state, metrics)`.

    Arguments:
        loss: `loss(model, batch, key=key)`, a scalar or a `Loss`. Arrays that it holds, such as
            those of a teacher, are arguments of the compiled function and not constants in it.
        optimizer: any optax optimizer; `AdamW(...).build(steps)` makes one.
        microbatch: rows of a batch whose gradient is made at once, where memory is too small for
            all. The step is the same, but for rounding, dropout and the balance of experts, which
            is that of each microbatch: see `accumulated`, which also says what it asks of the
            loss. None for as many as are fastest: all of them, but on a CPU those of at most 1024
            tokens, where `rows_at_once` finds that no row depends on another.
        precision: the number types that are computed with.
        skips_nonfinite: whether a step whose loss or gradient is infinite or NaN changes nothing
            but the number of steps; the metric `skipped` is then 1, else 0.

    A state that lies on a mesh, as `Placement` lays it, stays where it is: each array of the state
    that comes out lies as it did in the one that went in.

    The state that goes in is donated: its arrays are gone afterwards, so keep only the one that
    comes out. `metrics` has the `loss` before the update, the `gradient_norm` before clipping, and
    what the loss measured besides. They are still being computed when the function returns; the
    device waits for nobody until you read one.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8)
        >>> optimizer = ef.AdamW(1e-3).build(steps=100)
        >>> model = config.build(key=jax.random.key(0))
        >>> state = ef.TrainState.create(model, optimizer, key=jax.random.key(1))
        >>> step = ef.make_step(ef.next_token_loss, optimizer)
        >>> state, metrics = step(state, ef.TokenBatch(jnp.arange(18).reshape(2, 9)))
        >>> sorted(metrics), int(state.step)
        (['gradient_norm', 'loss'], 1)
    """

    check_microbatch(microbatch)
    check_splits(loss, microbatch)
    held, called = eqx.partition(loss, eqx.is_array)
    held, structure = jax.tree.flatten(held)

    def update(
        flat_state: Flat, flat_batch: Flat, held: list[Array], *, pieces: bool
    ) -> tuple[Flat, Metrics]:
        state, batch = flat_state.tree(), flat_batch.tree()
        loss = eqx.combine(jax.tree.unflatten(structure, held), called)
        key = jax.random.fold_in(state.key, state.step)
        trained, frozen = eqx.partition(state.model, state.trains.mask(state.model))

        def of_trained(loss: LossFunction) -> LossFunction:
            def own(trained: Any, batch: Any, /, *, key: PRNGKeyArray | None = None) -> Any:
                return loss(precision.computing(eqx.combine(trained, frozen)), batch, key=key)

            return own

        made = _few_at_once(loss, of_trained, trained, batch, key) if pieces else None
        metrics, gradients = made or _gradients(loss, of_trained, trained, batch, microbatch, key)
        metrics = precision.given(metrics)
        norm = global_norm(gradients)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes int steps with floats
            changes, memory = optimizer.update(gradients, state.optimizer, trained)
        model = eqx.apply_updates(state.model, changes)
        metrics = {**metrics, "gradient_norm": norm}
        if skips_nonfinite:
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
            model, memory = _chosen(finite, (model, memory), (state.model, state.optimizer))
            metrics["skipped"] = 1.0 - finite.astype(jnp.float32)
        return Flat.of(TrainState(model, memory, state.step + 1, state.key, state.trains)), metrics

    @functools.cache
    def alone(on_cpu: bool) -> Any:
        pieces = on_cpu and microbatch is None
        return jax.jit(functools.partial(update, pieces=pieces), donate_argnums=0)

    @functools.cache
    def together(spread: Spread) -> Any:
        where = Flat(spread.shardings, spread.shape)
        options = {"donate_argnums": 0, "out_shardings": (where, None)}
        return jax.jit(functools.partial(update, pieces=False), **options)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        flat = Flat.of(state)
        if flat.spread is None:
            new, metrics = alone(flat.on_cpu)(flat, Flat.of(batch), held)
            new.on_cpu = flat.on_cpu
        else:
            with jax.set_mesh(flat.spread.mesh):
                new, metrics = together(flat.spread)(flat, Flat.of(batch), held)
        new.spread = flat.spread
        return new.tree(), metrics

    def lower(state: TrainState, batch: Any) -> Any:
        flat, flat_batch = Flat.of(state), Flat.of(batch)
        if flat.spread is None:
            return alone(flat.on_cpu).lower(flat, flat_batch, held)
        with jax.set_mesh(flat.spread.mesh):
            return together(flat.spread).lower(flat, flat_batch, held)

    step.lower = lower  # pyright: ignore[reportFunctionMemberAccess]
    return step  # pyright: ignore[reportReturnType]


OfTrained = Callable[[LossFunction], LossFunction]


def _gradients(
    loss: LossFunction,
    of_trained: OfTrained,
    model: Any,
    batch: Any,
    microbatch: int | None,
    key: PRNGKeyArray,
) -> tuple[Metrics, Any]:
    """What is measured over a batch, and the gradient of the loss."""
    if microbatch is not None:
        return _accumulated(loss, of_trained, model, batch, key, microbatch=microbatch)
    called = of_trained(loss)

    def measured(model: Any) -> tuple[Array, Metrics]:
        value = called(model, batch, key=key)
        return (value.mean, value.means()) if isinstance(value, Loss) else (value, {"loss": value})

    (_, metrics), gradients = eqx.filter_value_and_grad(measured, has_aux=True)(model)
    return metrics, gradients


def _few_at_once(
    loss: LossFunction, of_trained: OfTrained, model: Any, batch: Any, key: PRNGKeyArray
) -> tuple[Metrics, Any] | None:
    """The same with as many rows at once as a CPU is fast with; None where these are all."""
    rows = rows_at_once(loss, model, batch)
    with contextlib.suppress(SeenTogether):
        if rows is not None:
            options = {"microbatch": rows, "exactly": True}
            return _accumulated(loss, of_trained, model, batch, key, **options)
    return None


def _accumulated(
    loss: LossFunction,
    of_trained: OfTrained,
    model: Any,
    batch: Any,
    key: PRNGKeyArray,
    **options: Any,
) -> tuple[Metrics, Any]:
    """The same, of a loss that is a sum or known to be the mean of one."""
    objective = objective_of(loss) or loss
    value, gradients = accumulated(of_trained(objective), model, batch, key=key, **options)
    return (value.means() if loss is objective else {"loss": value.mean}), gradients


def _chosen(condition: Array, one: Any, other: Any) -> Any:
    """The arrays of one of two like trees."""
    return jax.tree.map(
        lambda a, b: jnp.where(condition, a, b) if eqx.is_array(a) else a, one, other
    )


def global_norm(tree: Any) -> Float[Array, ""]:
    """Root of the sum of all squares in a tree of arrays, in float32."""
    leaves = jax.tree.leaves(tree)
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))
