"""Linear maps with adapters compute their formulas, and one merged map computes the same."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.adapters.made import KINDS, adapted
from tests.helpers.compare import FLOAT32_TABLES, assert_agrees, same_bits
from tests.helpers.hot import cast, drawn, normal
from tests.helpers.models import close

LINEAR = drawn(ef.Linear.Config(), 5, 7)


class Holder(eqx.Module):
    """A model of one linear map."""

    linear: ef.AbstractLinear

    def __call__(self, x):
        return self.linear(x)


def one(lora):
    return adapted(Holder(LINEAR), lora).linear


@pytest.mark.parametrize("kind", ["LoRA", "rsLoRA"])
def test_an_adapted_map_is_the_map_plus_the_scaled_product_of_two(kind):
    factor = {"LoRA": 3.0 / 2, "rsLoRA": 2.0 / 3**0.5}[kind]

    def twin(linear, x):
        base, lora = linear.base, linear.lora
        return x @ base.weight + base.bias + factor * x @ lora.down.weight @ lora.up.weight

    assert_agrees(lambda linear, x: linear(x), twin, one(KINDS[kind]), normal(1, 2, 3, 5))


def test_dora_gives_each_output_a_learned_length_and_takes_the_norm_for_a_constant():
    factor, found = 3.0 / 2, one(KINDS["DoRA"])

    def turned(linear):
        down, up = linear.lora.down.weight, linear.lora.up.weight
        return linear.base.weight + factor * np.asarray(down) @ np.asarray(up)

    constant = np.linalg.norm(turned(found), axis=0)

    def twin(linear, x):
        return x @ (turned(linear) / constant * linear.lora.magnitude) + linear.base.bias

    x = normal(1, 2, 3, 5)
    assert_agrees(lambda linear, x: linear(x), twin, found, x, tolerance=FLOAT32_TABLES)


@pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)
def test_one_merged_map_computes_the_same_and_a_new_adapter_changes_nothing(lora):
    x, linear = normal(1, 4, 5), one(lora)
    close(linear.plain()(x), linear(x), 1e-6)
    new = ef.add_lora(Holder(LINEAR), lora, to="linear", key=jax.random.key(0))
    close(new(x), LINEAR(x), 1e-6)
    assert float(jnp.abs(linear(x) - LINEAR(x)).max()) > 0.1


def test_an_output_of_zero_weights_stays_zero_under_dora_with_finite_gradients():
    dead = eqx.tree_at(lambda m: m.weight, LINEAR, LINEAR.weight.at[:, 2].set(0.0))
    model = ef.add_lora(Holder(dead), KINDS["DoRA"], to="linear", key=jax.random.key(0))
    gradients = eqx.filter_grad(lambda model: model(normal(1, 4, 5)).sum())(model)
    close(model(normal(1, 4, 5)), dead(normal(1, 4, 5)), 1e-6)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)
def test_an_adapter_in_float32_serves_a_base_in_bfloat16(lora):
    model = ef.add_lora(Holder(cast(LINEAR, jnp.bfloat16)), lora, to="**", key=jax.random.key(0))
    assert model.linear.lora.down.weight.dtype == jnp.float32
    x = normal(1, 4, 5).astype(jnp.bfloat16)
    assert model(x).dtype == jnp.bfloat16
    close(model(x).astype(jnp.float32), LINEAR(normal(1, 4, 5)), 0.03)
    assert ef.merge(model).linear.weight.dtype == jnp.bfloat16


def test_a_length_learned_in_float32_counts_though_bfloat16_does_not_hold_it():
    """Results are rounded to either side, and 1.01 always to 1.0078."""
    base = cast(drawn(ef.Linear.Config(bias=False), 5, 7), jnp.bfloat16)
    model = ef.add_lora(Holder(base), KINDS["DoRA"], to="**", key=jax.random.key(0))
    longer = eqx.tree_at(lambda m: m.linear.lora.magnitude, model, replace_fn=lambda x: 1.01 * x)
    x = normal(1, 30_000, 5).astype(jnp.bfloat16)
    size = eqx.filter_jit(lambda m, x: jnp.abs(m(x).astype(jnp.float32)).sum())
    assert float(size(longer, x) / size(base, x)) == pytest.approx(1.01, abs=5e-4)


def test_a_merged_weight_of_dora_is_rounded_once():
    model = adapted(Holder(cast(drawn(ef.Linear.Config(), 64, 64), jnp.bfloat16)), KINDS["DoRA"])
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), model)
    wanted = ef.merge(exact).linear.weight.astype(jnp.bfloat16)
    assert same_bits(ef.merge(model).linear.weight, wanted)


@pytest.mark.parametrize("lora", [KINDS["LoRA"], KINDS["DoRA"]], ids=["LoRA", "DoRA"])
def test_merging_in_float64_loses_nothing(lora):
    with jax.enable_x64(True):
        base = jnp.asarray(np.random.default_rng(0).standard_normal((5, 7)))
        start = eqx.tree_at(lambda m: m.weight, LINEAR, base)
        model = adapted(Holder(start), lora)
        found = ef.merge(model).linear.weight
        down, up = (np.asarray(part.weight, np.float64) for part in lora_of(model))
        wanted = np.asarray(base) + lora.factor * (down @ up)
        if lora is KINDS["DoRA"]:
            lengths = np.linalg.norm(wanted, axis=0)
            wanted = wanted / lengths * np.asarray(model.linear.lora.magnitude)
        assert found.dtype == jnp.float64
        # Lengths are computed in float32, as they are in every call.
        tolerance = 1e-6 if lora is KINDS["DoRA"] else 1e-14
        np.testing.assert_allclose(found, wanted, rtol=tolerance)
        directions = (np.asarray(a) / np.linalg.norm(a, axis=0) for a in (found, wanted))
        np.testing.assert_allclose(*directions, rtol=1e-13)


def lora_of(model):
    return model.linear.lora.down, model.linear.lora.up


@pytest.mark.parametrize("lora", [KINDS["LoRA"], KINDS["DoRA"]], ids=["LoRA", "DoRA"])
def test_vmap_over_an_adapted_map_changes_nothing(lora):
    x, linear = normal(1, 3, 2, 5), one(lora)
    close(jax.vmap(linear)(x), linear(x), 1e-6)


def test_the_base_comes_back_from_a_merged_map_of_lora_and_not_of_dora():
    model = adapted(Holder(LINEAR), KINDS["rsLoRA"])
    again = ef.unmerge(ef.merge(model), ef.adapters_of(model))
    close(again.linear.base.weight, LINEAR.weight, 1e-6)
    assert same_bits(again.linear.lora, model.linear.lora)
    dora = adapted(Holder(LINEAR), KINDS["DoRA"])
    with pytest.raises(NotImplementedError, match="keep the model that was merged"):
        ef.unmerge(ef.merge(dora), ef.adapters_of(dora))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rank": 0}, "`rank` must be positive; got 0"), ({"alpha": 0.0}, "`alpha` must be above 0")],
)
def test_settings_that_make_no_adapter_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ef.DoRA(**options)
