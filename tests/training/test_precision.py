"""Number types of a step: float32 is kept where bfloat16 computes."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers.hot import drawn

CONFIG = ef.families.gpt(vocab=11, dim=16, layers=1, heads=2, context=8)
BATCH = ef.TokenBatch(np.random.default_rng(0).integers(0, 11, (6, 9)).astype(np.int32))


@functools.cache
def model():
    return drawn(CONFIG)


def stepped(precision, microbatch=None):
    optimizer = ef.SGD(0.05, momentum=0.9).build(steps=3)
    state = ef.TrainState.create(model(), optimizer, key=jax.random.key(1), precision=precision)
    step = ef.make_step(ef.NextToken(), optimizer, precision=precision, microbatch=microbatch)
    return step(state, BATCH)


def types(tree):
    return {x.dtype for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)}


def moves(state):
    arrays, before = ef.named_arrays(state.model), ef.named_arrays(model())
    return np.concatenate([np.ravel(arrays[name]) - np.ravel(before[name]) for name in before])


@pytest.fixture(scope="module")
def exact():
    return stepped(ef.Precision())


@pytest.mark.parametrize("microbatch", [None, 3])
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


@pytest.mark.parametrize("layout", [ef.Unrolled(), ef.Scanned()], ids=["one by one", "stacked"])
def test_little_arrays_that_must_not_be_rounded_stay_in_float32(layout):
    expert = ef.MLP.Config(hidden=5)
    mixture = ef.Experts.Config(3, 2, expert, ef.SigmoidTopK(), correction=ef.Normal(1.0))
    config = CONFIG.edit("blocks.*", feed_forward=mixture).edit(layout=layout)

    @eqx.filter_jit
    def built(model):
        model = ef.quantise(model, to=("**.query", "**.experts.up"))
        return ef.add_lora(model, ef.DoRA(rank=2), to="**.value", key=jax.random.key(1))

    model, asked = built(drawn(config)), ef.Precision(parameters="bfloat16", compute="bfloat16")
    for cast in (asked.computing, asked.kept):
        arrays = ef.named_arrays(eqx.filter_eval_shape(cast, model)).items()
        wide = {name.removeprefix("blocks.0.") for name, x in arrays if x.dtype == jnp.float32}
        assert wide == {
            "attention.query.scale",
            "attention.value.lora.magnitude",
            "feed_forward.correction",
            "feed_forward.experts.up.scale",
            "feed_forward.router.weight",
        }
    again = eqx.filter_eval_shape(lambda: ef.Precision().computing(asked.computing(model)))
    assert types(again) == {jnp.dtype("float32")}
    loss = eqx.filter_jit(lambda model: ef.NextToken()(asked.computing(model), BATCH).mean)
    assert np.isfinite(loss(model))


def test_a_type_that_is_none_is_refused():
    with pytest.raises(TypeError, match="must be 'float32' or 'bfloat16' or 'float16'"):
        ef.Precision(compute="float8")
