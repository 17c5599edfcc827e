import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxformer.data.batches import TokenBatch
from eqxformer.losses.tokens import NextToken, next_token_loss
from eqxformer.optimizers.optimizer import SGD, AdamW, ClipByNorm
from eqxformer.optimizers.schedules import WarmupCosine
from eqxformer.training.state import TrainState
from eqxformer.training.step import make_step
from tests.helpers.compare import same_bits
from tests.training.tiny import Bigram, Noisy

BATCH = TokenBatch(np.arange(10, dtype=np.int32).reshape(2, 5) % 5)


def started(model=None, settings=None, key=1):
    optimizer = (settings or SGD(0.1)).build(steps=50)
    model = Bigram(key=jax.random.key(0)) if model is None else model
    return TrainState.create(model, optimizer, key=jax.random.key(key)), optimizer


def test_one_step_is_gradient_descent():
    state, optimizer = started()
    before = state.model.output + 0

    @jax.jit
    @jax.grad
    def slope(output):
        model = eqx.tree_at(lambda m: m.output, Bigram(key=jax.random.key(0)), output)
        return next_token_loss(model, BATCH)

    expected = slope(before)
    state, metrics = make_step(next_token_loss, optimizer)(state, BATCH)
    np.testing.assert_allclose(state.model.output, before - 0.1 * expected, rtol=1e-5, atol=1e-7)
    assert state.step == 1
    assert set(metrics) == {"loss", "gradient_norm"}


def test_steps_learn_a_cycle_of_tokens():
    state, optimizer = started(settings=AdamW(0.1, clip=ClipByNorm(1.0)))
    step = make_step(NextToken(), optimizer)
    for _ in range(50):
        state, metrics = step(state, BATCH)
    assert metrics["loss"] < 0.05


def test_steps_are_traced_once():
    traces = []

    def counted(model, batch, *, key=None):
        traces.append(key)
        return next_token_loss(model, batch, key=key)

    state, optimizer = started(settings=AdamW(WarmupCosine(1e-2, warmup=5)))
    step = make_step(counted, optimizer)
    for number in range(6):
        tokens = np.random.default_rng(number).integers(0, 5, (2, 5)).astype(np.int32)
        state, _ = step(state, TokenBatch(tokens))
    assert len(traces) == 1


def test_the_state_is_donated_and_the_originals_are_not():
    model, key = Bigram(key=jax.random.key(0)), jax.random.key(1)
    before = jax.tree.map(np.array, eqx.filter(model, eqx.is_array))
    optimizer = AdamW(0.1).build(steps=5)
    old = TrainState.create(model, optimizer, key=key)
    new, _ = make_step(next_token_loss, optimizer)(old, BATCH)
    arrays = [leaf for leaf in jax.tree.leaves(old) if isinstance(leaf, jax.Array)]
    assert len(arrays) > 6
    assert all(array.is_deleted() for array in arrays)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(eqx.filter(new, eqx.is_array)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(model))
    assert same_bits(eqx.filter(model, eqx.is_array), before)
    assert not key.is_deleted()


def test_arrays_of_numpy_are_trained_as_those_of_jax():
    model = Bigram(key=jax.random.key(0))
    optimizer = AdamW(0.1).build(steps=5)
    states = [
        TrainState.create(each, optimizer, key=jax.random.key(1))
        for each in (model, jax.tree.map(np.array, model))
    ]
    step = make_step(next_token_loss, optimizer)
    first, second = (step(state, BATCH)[0].model for state in states)
    assert same_bits(first, second)
    assert not same_bits(first, model)


def test_the_batch_is_not_donated():
    state, optimizer = started()
    batch = TokenBatch(jnp.asarray(BATCH.tokens))
    make_step(next_token_loss, optimizer)(state, batch)
    assert not batch.tokens.is_deleted()


def test_each_step_draws_its_own_noise_from_the_root_key():
    def run(key, steps=3):
        state, optimizer = started(Noisy(key=jax.random.key(0)), SGD(0.0), key)
        step, losses = make_step(next_token_loss, optimizer), []
        for _ in range(steps):
            state, metrics = step(state, BATCH)
            losses.append(float(metrics["loss"]))
        return losses

    first = run(1)
    assert len(set(first)) == 3
    assert run(1) == first
    assert run(2) != first


def test_a_loss_with_metrics_reports_them():
    def loss(model, batch, *, key=None):
        return NextToken()(model, batch, key=key).plus({"penalty": jnp.float32(0.5)})

    state, optimizer = started()
    _, metrics = make_step(loss, optimizer)(state, BATCH)
    np.testing.assert_allclose(metrics["penalty"], 0.5, rtol=1e-6)


def test_gradient_norm_is_that_before_clipping():
    state, optimizer = started(settings=SGD(0.1, clip=ClipByNorm(1e-6)))
    slopes = eqx.filter_jit(eqx.filter_grad(next_token_loss))
    gradients = slopes(Bigram(key=jax.random.key(0)), BATCH)
    squares = [np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradients)]
    _, metrics = make_step(next_token_loss, optimizer)(state, BATCH)
    np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt(sum(squares)), rtol=1e-5)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_any_kind_of_key_serves(kind):
    optimizer = SGD(0.1).build(steps=5)
    key = jax.random.key(0, impl=kind)
    state = TrainState.create(Noisy(key=jax.random.key(0)), optimizer, key=key)
    assert jax.random.key_impl(state.key) == jax.random.key_impl(key)
    state, _ = make_step(next_token_loss, optimizer)(state, BATCH)
    assert state.step == 1
