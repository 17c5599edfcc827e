"""One training step: a compiled function from a state to the next one.

Training starts reading here. A loop of your own is three lines:

    step = make_step(next_token_loss, optimizer)
    for batch in batches:
        state, metrics = step(state, batch)
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from eqxformer.losses.objective import LossFunction
from eqxformer.training.accumulation import check_microbatch, check_splits
from eqxformer.training.flat import Flat, Spread
from eqxformer.training.gradients import Metrics, global_norm, measured_gradients
from eqxformer.training.heaps import OnOneDevice
from eqxformer.training.precision import Precision
from eqxformer.training.state import TrainState


class Step(Protocol):
    """One training step, compiled when it is first called."""

    def __call__(self, state: TrainState, batch: Any, /) -> tuple[TrainState, Metrics]: ...

    def lower(self, state: TrainState, batch: Any, /) -> Any:
        """The program, as of `jax.jit`: `step.lower(state, batch).compile().memory_analysis()`."""
        ...


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
            tokens (or one row; more for models beyond 100M weights), where `rows_at_once` finds
            that no row depends on another.
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

    update = functools.partial(
        _updated,
        loss=lambda held: eqx.combine(jax.tree.unflatten(structure, held), called),
        optimizer=optimizer,
        microbatch=microbatch,
        precision=precision,
        skips_nonfinite=skips_nonfinite,
    )

    few_at_once = functools.partial(update, few_at_once=microbatch is None)
    alone = OnOneDevice(update, update_on_cpu=few_at_once)

    @functools.cache
    def together(spread: Spread) -> Any:
        where = Flat(spread.shardings, spread.shape)
        options = {"donate_argnums": 0, "out_shardings": (where, None)}
        return jax.jit(update, **options)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        flat = Flat.of(state)
        if flat.spread is None:
            new, metrics = alone(flat, Flat.of(batch), held)
            new.on_cpu, new.traced = flat.on_cpu, flat.traced
        else:
            with jax.set_mesh(flat.spread.mesh):
                new, metrics = together(flat.spread)(flat, Flat.of(batch), held)
        new.spread = flat.spread
        return new.tree(), metrics

    def lower(state: TrainState, batch: Any) -> Any:
        flat, flat_batch = Flat.of(state), Flat.of(batch)
        if flat.spread is None:
            return alone.program(flat, flat_batch, held).lower(flat, flat_batch, held)
        with jax.set_mesh(flat.spread.mesh):
            return together(flat.spread).lower(flat, flat_batch, held)

    step.lower = lower  # pyright: ignore[reportFunctionMemberAccess]
    return step  # pyright: ignore[reportReturnType]


def _updated(
    flat_state: Flat,
    flat_batch: Flat,
    held: list[Array],
    *,
    loss: Callable[[list[Array]], LossFunction],
    optimizer: optax.GradientTransformation,
    microbatch: int | None,
    precision: Precision,
    skips_nonfinite: bool,
    few_at_once: bool = False,
) -> tuple[Flat, Metrics]:
    """The step itself, whose loss is made of the arrays that it holds."""
    state, batch = flat_state.tree(), flat_batch.tree()
    trained, frozen = eqx.partition(state.model, state.trains.mask(state.model))

    def of_trained(loss: LossFunction) -> LossFunction:
        def own(trained: Any, batch: Any, /, *, key: PRNGKeyArray | None = None) -> Any:
            return loss(precision.computing(eqx.combine(trained, frozen)), batch, key=key)

        return own

    key = jax.random.fold_in(state.key, state.step)
    options: Any = {"microbatch": microbatch, "few_at_once": few_at_once}
    measured = measured_gradients(loss(held), of_trained, trained, batch, key, **options)
    metrics, gradients = precision.given(measured[0]), measured[1]
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


def _chosen(condition: Array, one: Any, other: Any) -> Any:
    """The arrays of one of two like trees."""
    return jax.tree.map(
        lambda a, b: jnp.where(condition, a, b) if eqx.is_array(a) else a, one, other
    )
