"""A mixture of experts against a loop over tokens and their experts."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.layers.experts import router_losses
from tests.helpers import reference
from tests.helpers.compare import assert_agrees, assert_close
from tests.helpers.hot import drawn, normal

GATED = ef.GatedMLP.Config(hidden=5)
MLP = ef.MLP.Config(hidden=5, activation="tanh")
CONFIGS = {
    "softmax, then the largest": ef.Experts.Config(6, 2, GATED),
    "not normalised": ef.Experts.Config(6, 2, GATED, ef.SoftmaxThenTopK(normalize=False)),
    "the largest, then softmax": ef.Experts.Config(6, 3, MLP, ef.TopKThenSoftmax()),
    "sigmoid": ef.Experts.Config(6, 2, GATED, ef.SigmoidTopK(scale=2.5)),
    "sigmoid, not normalised": ef.Experts.Config(6, 2, MLP, ef.SigmoidTopK(normalize=False)),
    "a correction of the choice": ef.Experts.Config(
        6, 2, GATED, ef.SigmoidTopK(scale=2.5), correction=ef.Normal(1.0)
    ),
    "a correction of a softmax": ef.Experts.Config(6, 2, MLP, correction=ef.Normal(1.0)),
    "a correction before a softmax": ef.Experts.Config(
        6, 3, MLP, ef.TopKThenSoftmax(), correction=ef.Normal(1.0)
    ),
    "two of four groups": ef.Experts.Config(
        12, 3, MLP, ef.SigmoidTopK(groups=4, top_groups=2), correction=ef.Normal(1.0)
    ),
    "one expert per token": ef.Experts.Config(6, 1, MLP, ef.SoftmaxThenTopK(normalize=False)),
    "all experts": ef.Experts.Config(4, 4, MLP),
    "a single expert": ef.Experts.Config(1, 1, GATED),
    "shared, router with a bias": ef.Experts.Config(
        6, 2, GATED, ef.TopKThenSoftmax(), ef.Linear.Config(bias=True), shared=MLP
    ),
}


@eqx.filter_jit
def run(part, x, key=None):
    return part.run(x, key=key)


# Their rules are those of "one expert per token", of "shared, router with a bias", and of "a
# correction of the choice", which have something beside.
PARTS_OF_OTHERS = {"not normalised", "the largest, then softmax", "sigmoid"}


@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in PARTS_OF_OTHERS])
def test_experts_equal_a_loop_over_tokens_in_value_gradient_and_losses(name):
    def everything(part, x):
        y, losses = part.run(x)
        return jnp.concatenate([y.reshape(-1), jnp.stack([losses.load_balance, losses.z])])

    def twin(part, x):
        y, balance, z = reference.experts(part, x.reshape(-1, 4))
        return np.concatenate([y.reshape(-1), [balance, z]])

    assert_agrees(everything, twin, drawn(CONFIGS[name], 4), normal(1, 2, 7, 4))


def test_a_correction_changes_the_choice_and_has_no_gradient():
    """It is as large as it takes to make every token choose experts 1 and 4."""
    part, x = drawn(CONFIGS["a correction of the choice"], 4), normal(1, 7, 4)
    wanted = np.float32([0.0, 9.0, 0.0, 0.0, 9.0, 0.0])
    part = eqx.tree_at(lambda p: p.correction, part, jax.device_put(wanted))
    found = eqx.filter_jit(eqx.filter_grad(lambda p: jnp.sin(p(x)).sum()))(part)
    assert not np.asarray(found.correction).any()
    used = np.abs(found.experts.down.weight).reshape(6, -1).max(-1) > 0
    assert np.flatnonzero(used).tolist() == [1, 4]
    assert np.abs(found.router.weight).max() > 0


def test_groups_keep_a_token_to_experts_of_the_best_groups():
    """A lone good expert does not carry its group: the sum of the two best counts."""
    rule, low = ef.SigmoidTopK(groups=3, top_groups=1), -9.0
    logits = jnp.array([[5.0, low, 2.0, 2.0, 1.0, low], [5.0, 3.0, 2.0, 2.0, 1.0, low]])
    for choose in (rule.choose, jax.jit(rule.choose, static_argnums=1)):
        weights, ids, _ = choose(logits, 2)
        assert np.sort(ids).tolist() == [[2, 3], [0, 1]]
        np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)


def test_the_order_of_tokens_does_not_matter():
    part, x = drawn(CONFIGS["softmax, then the largest"], 4), normal(1, 14, 4)
    order = np.random.default_rng(0).permutation(14)
    y, losses = run(part, x)
    shuffled, same = run(part, x[order])
    assert_close((shuffled, same), (y[order], losses), 1e-5)


def test_experts_that_nobody_chooses_have_no_gradient_and_do_no_harm():
    part = drawn(CONFIGS["the largest, then softmax"], 4)
    router = np.tile(np.float32([1, 0, 1, 0, 0, 1]), (4, 1))  # positive tokens: 0, 2 and 5
    part = eqx.tree_at(lambda p: p.router.weight, part, jax.device_put(router))
    part = eqx.tree_at(lambda p: p.router.bias, part, None, is_leaf=lambda b: b is None)
    x = jax.device_put(np.abs(normal(1, 7, 4)))
    found = eqx.filter_jit(eqx.filter_grad(lambda p: jnp.sin(p(x)).sum()))(part).experts
    for leaf in jax.tree.leaves(found):
        used = np.abs(leaf).reshape(6, -1).max(-1) > 0
        assert used.tolist() == [True, False, True, False, False, True]


def test_vmap_equals_the_batch_in_value_and_gradient():
    part, x = drawn(CONFIGS["shared, router with a bias"], 4), normal(1, 3, 5, 4)

    @eqx.filter_jit
    def both(part, x, mapped):
        def loss(arguments):
            part, x = arguments
            y = jax.vmap(part)(x) if mapped else part(x)
            return jnp.sin(y).sum(), y

        return eqx.filter_value_and_grad(loss, has_aux=True)((part, x))

    assert_close(both(part, x, True), both(part, x, False), 1e-5)


def test_jacobians_and_vmaps_over_anything_work():
    """Also where only the key is mapped, or only the parameters, or twice."""
    config = ef.Experts.Config(3, 2, ef.MLP.Config(hidden=5, dropout=0.5))
    part, x = drawn(config, 4), normal(1, 2, 3, 4)
    keys = jax.random.split(jax.random.key(0), 3)

    @eqx.filter_jit
    def every(part, x, keys):
        again = jax.random.clone(keys)[1]
        by_key = jax.vmap(lambda key: part(x, key=key))(keys), part(x, key=again)
        experts = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), part.experts)
        swapped = eqx.filter_vmap(lambda e: eqx.tree_at(lambda p: p.experts, part, e)(x))(experts)
        slopes = jax.jacrev(part)(x[0])
        return by_key, swapped[0], jax.vmap(jax.vmap(part))(x), part(x), slopes

    (by_key, one), swapped, twice, plain, slopes = every(part, x, keys)
    assert_close(by_key[1], one, 1e-6)
    assert_close((swapped, twice), (plain, plain), 1e-5)
    assert np.abs(slopes[0, :, 0]).min() > 0
    assert not slopes[0, :, 1].any()


def test_no_program_loops_over_experts():
    """No more operations for 16 experts than for 2: a product per projection, and the router's."""

    def products(count):
        part = drawn(ef.Experts.Config(count, 2, GATED), 4)
        text = eqx.filter_jit(lambda p, x: p(x)).lower(part, normal(0, 7, 4)).as_text()
        assert "stablehlo.while" not in text
        return text.count(" stablehlo.dot_general "), text.count(" = ")

    few, many = products(2), products(16)
    assert few[0] == many[0] == 4
    assert many[1] <= few[1]


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (0, 3, 4)])
def test_no_tokens_give_no_results_and_losses_of_zero(shape):
    part = drawn(CONFIGS["shared, router with a bias"], 4)
    y, losses = run(part, np.ones(shape, np.float32))
    assert y.shape == shape
    assert (float(losses.load_balance), float(losses.z)) == (0.0, 0.0)


def test_losses_of_tokens_of_which_none_counts_are_zero_with_finite_gradients():
    part, x = drawn(CONFIGS["softmax, then the largest"], 4), normal(1, 2, 3, 4)

    def loss(part):
        losses = part.run_valid(x, jnp.zeros(3, bool))[1]
        return losses.load_balance + losses.z

    value, slopes = eqx.filter_jit(eqx.filter_value_and_grad(loss))(part)
    assert value == 0.0
    assert not any(leaf.any() for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize(
    ("routing", "learns"),
    [
        (ef.SoftmaxThenTopK(), False),
        (ef.TopKThenSoftmax(), False),
        (ef.SigmoidTopK(), False),
        (ef.SoftmaxThenTopK(normalize=False), True),
        (ef.SigmoidTopK(normalize=False), True),
    ],
    ids=str,
)
def test_a_router_of_one_expert_learns_from_the_task_unless_weights_are_made_to_sum_to_one(
    routing, learns
):
    part, x = drawn(ef.Experts.Config(6, 1, MLP, routing), 4), normal(1, 7, 4)
    slope = eqx.filter_jit(eqx.filter_grad(lambda p: jnp.sin(p(x)).sum()))(part).router.weight
    assert (np.abs(slope).max() > 1e-3) == learns


def test_the_load_balance_loss_is_one_when_balanced_and_the_count_at_worst():
    ids, losses = np.arange(8)[:, None] % 4, jax.jit(router_losses)
    even, flat = np.zeros((8, 4), np.float32), np.full((8, 4), 0.25, np.float32)
    balanced = losses(even, flat, ids)
    assert float(balanced.load_balance) == pytest.approx(1.0)
    assert float(balanced.z) == pytest.approx(np.log(4) ** 2)
    one = np.tile(np.float32([0, 0, 1, 0]), (8, 1))
    worst = losses(even, one, np.full((8, 1), 2))
    assert float(worst.load_balance) == pytest.approx(4.0)


def test_the_load_balance_loss_pushes_towards_balance():
    part, x = drawn(CONFIGS["softmax, then the largest"], 4), 1.0 + normal(1, 50, 4)

    @eqx.filter_jit
    def descend(part):
        loss = lambda p: p.run(x)[1].load_balance  # noqa: E731
        value, slope = eqx.filter_value_and_grad(loss)(part)
        return value, eqx.apply_updates(part, jax.tree.map(lambda g: -0.5 * g, slope))

    before, _ = descend(part)
    for _ in range(20):
        after, part = descend(part)
    assert after < before - 0.1


def test_dropout_in_experts_needs_a_key_and_keeps_the_mean():
    config = ef.Experts.Config(3, 2, ef.MLP.Config(hidden=8, dropout=0.3))
    part, x = drawn(config, 4), normal(1, 2, 4)

    @jax.jit
    def moments(keys):
        many = jax.vmap(lambda key: part(x, key=key))(keys)
        return many.mean(0), many.std(0), part(x)

    mean, spread, expected = map(np.asarray, moments(jax.random.split(jax.random.key(3), 2000)))
    assert (spread > 0).all()
    assert (np.abs(mean - expected) < 5 * spread / np.sqrt(2000)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ef.Experts.Config(4, 0, MLP),
            "`top` must be between 1 and `count`; got top=0, count=4.",
        ),
        (
            lambda: ef.Experts.Config(4, 5, MLP),
            "`top` must be between 1 and `count`; got top=5, count=4.",
        ),
        (
            lambda: ef.Experts.Config(4, 2, CONFIGS["sigmoid"]),
            "`expert` cannot itself be a mixture of experts.",
        ),
        (
            lambda: ef.Experts.Config(4, 2, MLP, shared=CONFIGS["sigmoid"]),
            "`shared` cannot itself be a mixture of experts.",
        ),
        (
            lambda: ef.SigmoidTopK(groups=2, top_groups=3),
            "`top_groups` must be between 1 and `groups`; got top_groups=3, groups=2.",
        ),
        (
            lambda: ef.Experts.Config(4, 2, MLP, ef.SigmoidTopK(groups=3, top_groups=1)),
            "`groups` must divide the count of experts into groups of two or more; "
            "got groups=3, count=4.",
        ),
        (
            lambda: ef.Experts.Config(8, 3, MLP, ef.SigmoidTopK(groups=4, top_groups=1)),
            "`top` experts must be there in `top_groups` groups of 2; got top=3, top_groups=1.",
        ),
    ],
)
def test_impossible_mixtures_are_refused(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message


def test_an_expert_with_parameters_outside_linear_maps_is_refused():
    """Only `Linear` maps can be grouped: a norm inside would see the gains of all experts."""

    class Normed(ef.FeedForward):
        class Config(ef.FeedForward.Config):
            def build(self, dim, *, key):
                return Normed(ef.RMSNorm(dim), ef.Linear(dim, dim, key=key))

        norm: ef.RMSNorm
        linear: ef.Linear

        def run(self, x, *, key=None):
            return self.linear(self.norm(x)), None

    config = ef.Experts.Config(4, 2, Normed.Config())
    with pytest.raises(NotImplementedError, match="`norm.weight`"):
        eqx.filter_eval_shape(lambda key: config.build(4, key=key), jax.random.key(0))


class Bent(ef.FeedForward):
    """An expert that holds a function beside its map."""

    class Config(ef.FeedForward.Config):
        def build(self, dim, *, key):
            return Bent(jnp.tanh, ef.Linear(dim, dim, key=key))

    bend: Callable
    linear: ef.Linear

    def run(self, x, *, key=None):
        return self.linear(self.bend(x)), None


def test_an_expert_may_hold_what_is_no_array():
    config, x = ef.Experts.Config(1, 1, Bent.Config()), normal(1, 3, 4)
    part = eqx.filter_jit(config.build)(4, key=jax.random.key(0))
    weight, bias = (np.asarray(getattr(part.experts.linear, n))[0] for n in ("weight", "bias"))
    y, _ = run(part, x)
    np.testing.assert_allclose(y, np.tanh(x) @ weight + bias, atol=1e-6)


def test_an_expert_without_parameters_is_refused():
    class Nothing(ef.FeedForward):
        class Config(ef.FeedForward.Config):
            def build(self, dim, *, key):
                return Nothing()

        def run(self, x, *, key=None):
            return x, None

    with pytest.raises(NotImplementedError, match="must have parameters.*Nothing has none"):
        ef.Experts.Config(4, 2, Nothing.Config()).build(4, key=jax.random.key(0))


def test_a_run_of_ones_own_is_what_a_block_asks():
    class Doubled(ef.Experts):
        def run(self, x, *, key=None):
            y, losses = super().run(x, key=key)
            return 2.0 * y, losses

    config = ef.Experts.Config(3, 2, GATED)
    usual, key = drawn(config, 8), jax.random.key(0)
    shapes = eqx.filter_eval_shape(lambda key: Doubled(8, config, key=key), key)
    own = jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(usual))
    patched = ef.patch(own, {"chosen_weights": lambda weights: 2.0 * weights})

    @eqx.filter_jit
    def results(x, valid):
        return [part.run_valid(x, valid)[0] for part in (usual, own, patched)]

    y, once, twice = map(np.asarray, results(normal(0, 1, 3, 8), np.array([[True, True, False]])))
    np.testing.assert_array_equal(twice, 4.0 * y)
    np.testing.assert_array_equal(once, 2.0 * y)
