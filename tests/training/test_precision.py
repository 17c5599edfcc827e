"""Number types of a step: float32 is kept where bfloat16 computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers.hot import hot

CONFIG = ef.families.gpt(vocab=11, dim=16, layers=1, heads=2, context=8)
MODEL = hot(CONFIG.build(key=jax.random.key(0)), jax.random.key(2))
BATCH = ef.TokenBatch(np.random.default_rng(0).integers(0, 11, (6, 9)).astype(np.int32))


def stepped(precision, microbatch=None):
    optimizer = ef.SGD(0.05, momentum=0.9).build(steps=3)
    state = ef.TrainState.create(MODEL, optimizer, key=jax.random.key(1), precision=precision)
    step = ef.make_step(ef.NextToken(), optimizer, precision=precision, microbatch=microbatch)
    return step(state, BATCH)


def types(tree):
    return {x.dtype for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)}


def moves(state):
    arrays, before = ef.named_arrays(state.model), ef.named_arrays(MODEL)
    return np.concatenate([np.ravel(arrays[name] - before[name]) for name in before])


@pytest.fixture(scope="module")
def exact():
    return stepped(ef.Precision())


@pytest.mark.parametrize("microbatch", [None, 4])
def test_bfloat16_computes_and_float32_is_kept(exact, microbatch):
    state, metrics = stepped(ef.Precision(compute="bfloat16"), microbatch)
    assert types((state.model, state.optimizer, metrics)) == {jnp.dtype("float32")}
    np.testing.assert_allclose(metrics["loss"], exact[1]["loss"], rtol=0.02)
    got, right = moves(state), moves(exact[0])
    error = np.linalg.norm(got - right) / np.linalg.norm(right)
    assert 1e-4 < error < 0.05  # bfloat16 has 8 bits: it did compute, and not wrongly


def test_parameters_are_kept_in_the_type_that_is_asked_for():
    state, _ = stepped(ef.Precision(parameters="bfloat16", compute="bfloat16"))
    assert types(state.model) == {jnp.dtype("bfloat16")}
    state, metrics = stepped(ef.Precision(output="bfloat16"))
    assert types(state.model) == {jnp.dtype("float32")}
    assert metrics["loss"].dtype == jnp.bfloat16


def test_a_type_that_is_none_is_refused():
    with pytest.raises(TypeError, match="must be 'float32' or 'bfloat16' or 'float16'"):
        ef.Precision(compute="float8")
