"""Linear maps, norms, activations and feed-forwards against their formulas."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.layers.feed_forward import FeedForward
from eqxformer.layers.norms import Identity
from tests.helpers import reference
from tests.helpers.compare import FLOAT64, assert_agrees, rounding_error
from tests.helpers.hot import drawn, hot, normal

NORMS = {
    "layer norm": ef.LayerNorm.Config(eps=0.1),
    "layer norm without bias": ef.LayerNorm.Config(eps=0.1, bias=False),
    "layer norm without gain": ef.LayerNorm.Config(eps=0.1, gain=False),
    "layer norm without parameters": ef.LayerNorm.Config(eps=0.1, gain=False, bias=False),
    "rms norm": ef.RMSNorm.Config(eps=0.1),
    "rms norm with its gain stored from one": ef.RMSNorm.Config(eps=0.1, offset=1.0),
    "no norm": None,
}
FEED_FORWARDS = {
    "mlp": ef.MLP.Config(hidden=7, activation="relu"),
    "mlp without biases": ef.MLP.Config(
        hidden=7, up=ef.Linear.Config(bias=False), down=ef.Linear.Config(bias=False)
    ),
    "gated mlp": ef.GatedMLP.Config(hidden=7),
    "gated mlp with biases": ef.GatedMLP.Config(
        hidden=7,
        activation="gelu_tanh",
        gate=ef.Linear.Config(),
        up=ef.Linear.Config(bias=True),
        down=ef.Linear.Config(bias=True),
    ),
    "clamped gated mlp": ef.ClampedGatedMLP.Config(hidden=7, alpha=1.3, limit=1.1),
    "clamped gated mlp of gpt-oss without biases": ef.ClampedGatedMLP.Config(
        hidden=7, **dict.fromkeys(("gate", "up", "down"), ef.Linear.Config(bias=False))
    ),
}


@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_its_formula_in_value_and_gradient(bias):
    part = drawn(ef.Linear.Config(bias=bias), 5, 3)
    assert (part.bias is not None) == bias
    assert_agrees(lambda p, x: p(x), reference.linear, part, normal(2, 4, 5))


@pytest.mark.parametrize(
    ("sizes", "bias"),
    [
        ([2, 0, 3, 1], True),
        ([0, 0, 13, 0], False),
        ([4, 4, 4, 4], True),
        ([0, 0, 0, 1], True),
        ([9, 1, 1, 1], False),
    ],
    ids=str,
)
def test_a_grouped_linear_uses_the_weight_of_each_rows_group(sizes, bias):
    biases = normal(1, 4, 5) if bias else None
    groups = np.repeat(np.arange(4), sizes)

    def grouped(weight, bias, x):
        return ef.GroupedLinear(weight, bias, ef.Groups(jnp.asarray(groups), 4))(x)

    def twin(weight, bias, x):
        rows = zip(x, groups, strict=True)
        return np.array([r @ weight[g] + (0 if bias is None else bias[g]) for r, g in rows])

    assert_agrees(grouped, twin, normal(0, 4, 3, 5), biases, normal(2, sum(sizes), 3))


@pytest.mark.parametrize("name", NORMS)
def test_norms_equal_their_formulas_in_value_and_gradient(name):
    config = NORMS[name]
    part = Identity() if config is None else hot(config.build(6), jax.random.key(0))
    assert_agrees(lambda p, x: p(x), reference.norm, part, 0.3 * normal(1, 2, 3, 6))


def test_a_layer_norm_has_the_parameters_it_was_asked_for():
    for gain, bias in [(True, True), (False, True), (True, False), (False, False)]:
        part = ef.LayerNorm(4, gain=gain, bias=bias)
        assert (part.weight is not None, part.bias is not None) == (gain, bias)


@pytest.mark.parametrize("config", [ef.LayerNorm.Config(), ef.RMSNorm.Config(offset=1.0)])
def test_a_fresh_norm_has_a_gain_of_one(config):
    gained = config.build(64)(normal(0, 64))
    assert float(jnp.square(gained).mean()) == pytest.approx(1.0, rel=0.05)


def test_a_layer_norm_of_equal_numbers_is_its_bias():
    part = hot(ef.LayerNorm(4), jax.random.key(0))
    assert (part(jnp.full((3, 4), 7.0)) == jnp.broadcast_to(part.bias, (3, 4))).all()


@pytest.mark.parametrize("config", [ef.LayerNorm.Config(), ef.RMSNorm.Config()])
def test_norms_of_bfloat16_are_computed_in_float32(config):
    """256 numbers of size 1000: their sum of squares would be off by percents in bfloat16."""
    part = config.build(256)
    assert rounding_error(lambda x: part(x), 1000 * normal(0, 256)) < 2**-8


@pytest.mark.parametrize("name", sorted(reference.ACTIVATIONS))
def test_activations_equal_their_formulas_in_value_and_gradient(name):
    x = jnp.linspace(-6.0, 6.0, 41) + 0.01  # beside the kink of the relus
    assert_agrees(ef.activation(name), lambda x: reference.activate(name, x), x)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_a_gelu_keeps_nothing_wider_than_its_input_for_the_gradient(name):
    _, back = jax.vjp(ef.activation(name), jnp.linspace(-3.0, 3.0, 64, dtype=jnp.bfloat16))
    kept = [leaf for leaf in jax.tree.leaves(back) if getattr(leaf, "size", 0) > 1]
    assert {leaf.dtype.name for leaf in kept} == {"bfloat16"}


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_gelu_in_a_small_type_is_rounded_once_in_value_and_gradient(name, dtype):
    """Also far out, where float16 holds no cube, and below zero, where all but a little cancels."""
    far = jnp.array([-300.0, -148.0, -41.0, 41.0, 148.0, 300.0])
    x = jnp.concatenate([jnp.linspace(-3.0, 3.0, 41), far]).astype(dtype)
    act = ef.activation(name)
    found = (act(x), jax.grad(lambda x: act(x).sum())(x))
    wide = x.astype(jnp.float32)
    expected = (act(wide), jax.grad(lambda x: act(x).sum())(wide))
    for got, exact in zip(found, expected, strict=True):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, exact.astype(dtype))


def test_every_activation_has_a_formula_here_and_others_are_refused():
    with pytest.raises(TypeError, match="`MLP.activation` must be 'relu' or .*; got 'swish'"):
        ef.MLP.Config(hidden=3, activation="swish")
    assert set(reference.ACTIVATIONS) == set(ef.Activation.__args__)


@pytest.mark.parametrize("name", FEED_FORWARDS)
def test_feed_forwards_equal_their_formulas_in_value_and_gradient(name):
    part = drawn(FEED_FORWARDS[name], 5)
    assert_agrees(lambda p, x: p(x), reference.feed_forward, part, normal(2, 3, 5))


@pytest.mark.parametrize("name", FEED_FORWARDS)
def test_a_feed_forward_has_the_biases_it_was_asked_for(name):
    config = FEED_FORWARDS[name]
    part = eqx.filter_eval_shape(lambda key: config.build(5, key=key), jax.random.key(0))
    for field in ("gate", "up", "down"):
        if hasattr(config, field):
            assert (getattr(part, field).bias is not None) == getattr(config, field).bias


def test_a_clamped_gate_is_bounded_above_alone_and_the_other_side_on_both():
    """With one number in and out: far gates are cut at 7, far negative ones fade to zero."""
    ones = dict.fromkeys(("gate", "up", "down"), ef.Linear.Config(bias=False))
    part = jax.tree.map(np.ones_like, drawn(ef.ClampedGatedMLP.Config(hidden=1, **ones), 1))
    edge = 8 * 7 / (1 + np.exp(-1.702 * 7))
    run = eqx.filter_jit(lambda part, x: part(x))
    outputs = run(part, np.float32([[7.0], [9.0], [1000.0], [-1000.0]]))
    np.testing.assert_allclose(outputs[:, 0], [edge, edge, edge, 0.0], rtol=1e-6)
    with pytest.raises(ValueError, match="`limit` must be above 0; got 0.0."):
        ef.ClampedGatedMLP.Config(hidden=3, limit=0.0)


@pytest.mark.parametrize("kind", [ef.MLP, ef.GatedMLP, ef.ClampedGatedMLP])
def test_dropout_in_a_feed_forward_keeps_the_mean_and_needs_a_key(kind):
    part, x = drawn(kind.Config(hidden=16, dropout=0.4), 4), normal(1, 4)

    @jax.jit
    def moments(keys):
        many = jax.vmap(lambda key: part(x, key=key))(keys)
        return many.mean(0), many.std(0), part(x)

    mean, spread, expected = map(np.asarray, moments(jax.random.split(jax.random.key(2), 4000)))
    assert (spread > 0).all()
    assert (np.abs(mean - expected) < 5 * spread / np.sqrt(4000)).all()


def test_a_feed_forward_of_ones_own_needs_only_run():
    class Doubled(FeedForward):
        def run(self, x, *, key=None):
            return 2 * x, None

    assert (Doubled()(jnp.ones((2, 3))) == 2).all()


@pytest.mark.parametrize("kind", [ef.MLP, ef.GatedMLP, ef.ClampedGatedMLP])
def test_impossible_feed_forwards_are_refused(kind):
    with pytest.raises(ValueError, match="`hidden` must be positive; got 0."):
        kind.Config(hidden=0)
    with pytest.raises(ValueError, match="`dropout` must be at least 0 and below 1; got 1.0."):
        kind.Config(hidden=3, dropout=1.0)


def test_a_linear_map_of_no_width_is_refused():
    with pytest.raises(ValueError, match="must be positive; got in_dim=0, out_dim=3."):
        ef.Linear(0, 3, key=jax.random.key(0))


def test_the_exact_gelu_is_accurate_in_float32():
    x = jnp.linspace(-4.0, 4.0, 101)
    expected = reference.activate("gelu", np.asarray(x, np.float64))
    assert np.abs(ef.activation("gelu")(x) - expected).max() < 1e-6 > FLOAT64
