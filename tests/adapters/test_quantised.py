"""Linear maps with int8 weights: how near they are, how small, and that they stay as they are."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.layers.linear import Groups
from tests.adapters.made import KINDS, adapted, plain, small
from tests.helpers.compare import same_bits
from tests.helpers.hot import drawn, normal
from tests.helpers.models import close, filled, logits, tokens

LINEAR = drawn(ef.Linear.Config(), 64, 48)
QUANTISED = ef.QuantisedLinear.of(LINEAR)


def test_a_weight_is_off_by_half_its_outputs_scale_at_most_and_the_largest_is_exact():
    weight, numbers = np.asarray(LINEAR.weight), np.asarray(QUANTISED.weight)
    scale = np.abs(weight).max(0) / 127
    np.testing.assert_allclose(QUANTISED.scale, scale, rtol=1e-6)
    error = np.abs(np.asarray(QUANTISED.plain().weight) - weight)
    assert bool((error <= scale * 0.5001).all())
    assert bool((np.abs(numbers).max(0) == 127).all())
    assert error[np.abs(numbers) == 127].max() < 1e-6


def test_an_output_is_off_by_no_more_than_its_weights_allow():
    x = normal(1, 3, 5, 64)
    allowed = np.abs(x).sum(-1, keepdims=True) * np.asarray(QUANTISED.scale) * 0.5001
    error = np.abs(np.asarray(QUANTISED(x)) - np.asarray(LINEAR(x)))
    assert bool((error <= allowed + 1e-5).all())
    assert error.max() / np.abs(np.asarray(LINEAR(x))).max() < 0.02
    close(QUANTISED(x), QUANTISED.plain()(x), 1e-6)
    close(jax.vmap(QUANTISED)(x), QUANTISED(x), 1e-6)


def test_outputs_without_weights_are_their_bias():
    dead = ef.Linear.of(jnp.zeros((3, 2)), jnp.array([0.5, -1.0]))
    assert np.array_equal(ef.QuantisedLinear.of(dead)(normal(1, 3)), dead.bias)


def test_weights_take_a_quarter_of_the_memory():
    blocks = ef.quantise(plain(), to="**")
    assert QUANTISED.weight.dtype == jnp.int8
    assert QUANTISED.weight.nbytes + QUANTISED.scale.nbytes <= 0.27 * LINEAR.weight.nbytes
    assert all(
        leaf.dtype == jnp.int8
        for path, leaf in ef.named_arrays(blocks).items()
        if path.endswith(("attention.query.weight", "feed_forward.down.weight"))
    )


def test_int8_numbers_compute_in_the_type_of_their_input():
    x = normal(1, 4, 64).astype(jnp.bfloat16)
    small = ef.QuantisedLinear.of(ef.Linear.of(LINEAR.weight.astype(jnp.bfloat16), None))
    assert small(x).dtype == jnp.bfloat16
    close(small(x).astype(jnp.float32), x.astype(jnp.float32) @ LINEAR.weight, 0.02)


def test_the_gradient_passes_to_the_input_and_the_bias_and_stops_at_the_weight():
    x, plain_again = normal(1, 3, 64), QUANTISED.plain()
    square = lambda linear, x: jnp.square(linear(x)).sum()  # noqa: E731
    close(
        jax.grad(lambda x: square(QUANTISED, x))(x), jax.grad(lambda x: square(plain_again, x))(x)
    )
    gradient = eqx.filter_grad(square)(QUANTISED, x)
    assert gradient.weight is None
    assert not gradient.scale.any()
    close(gradient.bias, eqx.filter_grad(square)(plain_again, x).bias)


def test_a_quantised_model_with_adapters_on_top_is_its_merged_self():
    base = ef.quantise(plain(ef.Scanned()), to="blocks")
    found = ef.with_adapters(base, ef.adapters_of(small("DoRA")))
    ids = tokens(2, 5)
    close(logits(ef.merge(found), ids), logits(found, ids))
    close(logits(ef.merge(base), ids), logits(plain(ef.Scanned()), ids), 0.05)


def test_experts_are_quantised_with_a_scale_per_expert():
    mixture = drawn(ef.Experts.Config(3, 2, ef.MLP.Config(hidden=5)), 6)
    assert ef.named_arrays(ef.quantise(mixture, to="experts"))["experts.up.scale"].shape == (3, 5)


@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
def test_a_scan_over_layers_has_no_copy_of_their_weights_in_float32(kind):
    """Nor has its backward pass, where JAX would keep what each layer has cast."""
    size, layers = 64, 9
    numbers = normal(0, layers, size, size)
    model = jax.vmap(lambda weight: ef.QuantisedLinear.of(ef.Linear.of(weight, None)))(numbers)
    adapter = adapted((ef.Linear.of(numbers[0], None),), KINDS[kind])[0].lora

    def run(x, adapter):
        def body(x, base):
            return jnp.tanh(adapter(x, base)), None

        return jax.lax.scan(body, x, model)[0].sum()

    program = jax.jit(jax.grad(run, (0, 1))).lower(normal(1, 3, size), adapter).compile()
    assert program.memory_analysis().temp_size_in_bytes < 0.6 * 4 * layers * size**2


def test_what_is_quantised_stays_so_and_what_is_adapted_is_refused():
    once = ef.quantise(plain(), to="**.query")
    assert same_bits(ef.quantise(once, to="**.query"), once)
    with pytest.raises(ValueError, match=r"`blocks.0.attention.query` has an adapter; quantise fi"):
        ef.quantise(small(), to="blocks")
    with pytest.raises(ValueError, match="leads to no linear map"):
        ef.quantise(plain(), to="embedding")


def test_a_quantised_model_is_saved_merged(tmp_path):
    base = ef.quantise(plain(), to="blocks")
    with pytest.raises(ValueError, match=r"`blocks.0.attention.query` is a QuantisedLinear"):
        ef.save(base, tmp_path)
    ef.save(ef.merge(base), tmp_path)
    assert same_bits(ef.load(tmp_path), ef.merge(base))


@pytest.mark.parametrize("experts", [False, True])
def test_float16_holds_the_product_with_whole_numbers(experts):
    """Outputs of 256, which the sum of the whole numbers alone passes by far."""
    x = jnp.ones((2, 1024), jnp.float16)
    linear = ef.QuantisedLinear.of(ef.Linear.of(jnp.full((1024, 3), 0.25), jnp.ones(3)))
    if experts:
        stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), linear)
        linear = stacked.grouped(Groups(jnp.array([0, 1]), 2))
    else:
        weight = jnp.asarray(linear.weight)
        assert not bool(jnp.isfinite(x @ weight.astype(jnp.float16)).all())
    close(jax.tree.map(_half, linear)(x), jnp.full((2, 3), 257.0, jnp.float16), 1e-3)


def _half(leaf):
    return leaf.astype(jnp.float16) if eqx.is_inexact_array(leaf) else leaf


def test_scales_are_multiplied_unrounded_in_bfloat16():
    x = jnp.asarray(normal(2, 4, 64), jnp.bfloat16)
    bare = QUANTISED.bare()
    product = np.asarray(x @ bare.weight.astype(jnp.bfloat16), np.float32)
    expected = jnp.asarray(product * np.asarray(bare.scale)).astype(jnp.bfloat16)
    assert same_bits(bare(x), expected)


def test_a_quantised_model_that_computes_in_a_small_type_remembers_in_it():
    config = ef.families.gpt(vocab=11, dim=8, layers=1, heads=2, context=8)
    model = ef.quantise(filled(config), to="blocks")
    small = ef.Precision(compute="bfloat16").computing(model)
    cache = small.init_cache((2,), slots=4)
    kept = [leaf for leaf in jax.tree.leaves(cache) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype.name for leaf in kept} == {"bfloat16"}
