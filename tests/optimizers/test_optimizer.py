import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float

from eqxformer.blocks import Scanned, Unrolled
from eqxformer.checkpoints.names import name, named_arrays
from eqxformer.checkpoints.native import shapes
from eqxformer.checkpoints.rebuild import rebuild
from eqxformer.config import Config
from eqxformer.layers import MLP, Experts, RMSNorm
from eqxformer.models import families
from eqxformer.optimizers.copies import factored_moments
from eqxformer.optimizers.muon import Muon
from eqxformer.optimizers.optimizer import (
    SGD,
    Adafactor,
    AdamW,
    ClipByNorm,
    ClipByValue,
    Lion,
    decays,
)
from eqxformer.optimizers.schedules import (
    InverseSquareRoot,
    WarmupCosine,
    WarmupExponential,
    WarmupLinear,
    WarmupStableDecay,
)
from eqxformer.optimizers.trainable import trainable
from tests.helpers.compare import same_bits
from tests.helpers.models import filled
from tests.training.tiny import Bigram


def updated(settings, parameters, gradients, steps=1):
    """Parameters after some steps with the same gradients."""
    optimizer = settings.build(steps=100)
    with jax.numpy_dtype_promotion("standard"):
        memory = optimizer.init(parameters)
        for _ in range(steps):
            changes, memory = optimizer.update(gradients, memory, parameters)
            parameters = eqx.apply_updates(parameters, changes)
    return parameters


def test_adamw_takes_the_steps_of_the_paper():
    rate, (b1, b2), eps, decay = 0.01, (0.8, 0.95), 1e-6, 0.1
    weights = np.array([[1.0, -2.0], [0.5, 3.0]])
    gradient = np.array([[0.1, -0.2], [0.0, 0.4]])
    mean, square, expected = 0 * weights, 0 * weights, weights
    for step in range(1, 4):
        mean = b1 * mean + (1 - b1) * gradient
        square = b2 * square + (1 - b2) * gradient**2
        direction = (mean / (1 - b1**step)) / (np.sqrt(square / (1 - b2**step)) + eps)
        expected = expected - rate * (direction + decay * expected)
    settings = AdamW(rate, betas=(b1, b2), epsilon=eps, weight_decay=decay)
    got = updated(settings, jnp.asarray(weights), jnp.asarray(gradient), steps=3)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_only_matrices_decay():
    model = trainable(Bigram(key=jax.random.key(0)))
    model = eqx.tree_at(lambda m: m.bias, model, jnp.ones(5))
    still = jax.tree.map(jnp.zeros_like, model)
    after = updated(AdamW(0.1, weight_decay=0.5), model, still)
    np.testing.assert_allclose(after.embedding, 0.95 * model.embedding, rtol=1e-6)
    np.testing.assert_allclose(after.bias, model.bias, rtol=0)


class Stacked(eqx.Module):
    gain: Float[Array, "layers dim"]
    weight: Float[Array, "layers dim hidden"]
    bias: Float[Array, "experts hidden"]


def test_stacked_vectors_stay_vectors_for_the_decay():
    model = Stacked(jnp.ones((3, 4)), jnp.ones((3, 4, 8)), jnp.ones((2, 8)))
    mask = decays(model)
    assert (mask.gain, mask.weight, mask.bias) == (False, True, False)


@pytest.mark.parametrize("layout", [Unrolled(), Scanned()])
def test_norms_and_biases_of_a_model_never_decay_however_its_layers_are_stored(layout):
    config = families.gpt(vocab=11, dim=8, layers=3, heads=2, context=8).edit(layout=layout)
    mask = jax.tree_util.tree_leaves_with_path(decays(shapes(config)))
    for path, decaying in mask:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        assert decaying == (name.endswith("weight") and "norm" not in name), name


def test_gains_for_each_head_are_vectors_and_the_weights_of_a_router_a_matrix():
    mixture = Experts.Config(count=3, top=2, expert=MLP.Config(hidden=8))
    config = families.gpt(vocab=11, dim=8, layers=1, heads=2, context=8)
    config = config.edit("blocks.*", feed_forward=mixture).edit(
        "blocks.*.attention", qk_norm=RMSNorm.Config(), qk_norm_over="each_head"
    )
    found = {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes(config))}
    mask = jax.tree_util.tree_leaves_with_path(decays(shapes(config)))
    decaying = {name(path) for path, yes in mask if yes}
    assert found["blocks.groups.0.attention.query_norm.weight"].shape == (2, 4)
    assert not any("norm" in path for path in decaying)
    assert "blocks.groups.0.feed_forward.router.weight" in decaying


def test_arrays_without_axis_words_decay_by_their_number_of_axes():
    assert decays({"w": jnp.ones((2, 2)), "b": jnp.ones(2)}) == {"w": True, "b": False}


def test_clipping_by_norm_keeps_the_direction():
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    start = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    got = updated(SGD(1.0, clip=ClipByNorm(1.0)), start, gradients)
    np.testing.assert_allclose([got["a"][0], got["b"][0]], [-0.6, -0.8], rtol=1e-6)
    same = updated(SGD(1.0, clip=ClipByNorm(6.0)), start, gradients)
    np.testing.assert_allclose([same["a"][0], same["b"][0]], [-3.0, -4.0], rtol=1e-6)


def test_clipping_by_value_is_elementwise():
    gradients = jnp.array([-3.0, 0.5, 2.0])
    got = updated(SGD(1.0, clip=ClipByValue(1.0)), jnp.zeros(3), gradients)
    np.testing.assert_allclose(got, [1.0, -0.5, -1.0], rtol=1e-6)


@pytest.mark.parametrize("kind", [SGD, AdamW, Lion, Adafactor, Muon])
def test_every_optimizer_clips_first(kind):
    """Seen in what it remembers: a step of Lion alone is the same for every size of a gradient."""
    model = Bigram(key=jax.random.key(0))
    ones = jax.tree.map(jnp.ones_like, trainable(model))
    threes = jax.tree.map(lambda x: 3 * x, ones)
    momentum = {"momentum": 0.9} if kind in (SGD, Adafactor) else {}

    def remembered(gradients, **clip):
        optimizer = kind(0.1, **momentum, **clip).build(1)
        parameters = trainable(model)
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(gradients, optimizer.init(parameters), parameters)[1]

    clipped = jax.tree.leaves(remembered(threes, clip=ClipByValue(1.0)))
    plain, large = (jax.tree.leaves(remembered(each)) for each in (ones, threes))
    assert all(np.array_equal(a, b) for a, b in zip(clipped, plain, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(large, plain, strict=True))


def test_momentum_accumulates():
    got = updated(SGD(1.0, momentum=0.5), jnp.zeros(1), jnp.ones(1), steps=2)
    np.testing.assert_allclose(got, [-2.5], rtol=1e-6)


def test_the_schedule_sets_the_rate_of_each_step():
    got = updated(SGD(WarmupLinear(peak=1.0, warmup=3)), jnp.zeros(1), jnp.ones(1), steps=2)
    np.testing.assert_allclose(got, [-0.75], rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (WarmupCosine(1.0, warmup=9, final=0.2), {0: 0.1, 8: 0.9, 9: 1.0, 59: 0.6, 109: 0.2}),
        (WarmupCosine(1.0), {0: 1.0, 109: 0.0, 500: 0.0}),
        (WarmupLinear(1.0, warmup=9), {4: 0.5, 9: 1.0, 59: 0.5, 109: 0.0, 200: 0.0}),
        (
            WarmupExponential(0.8, warmup=9, start=0.5, factor=0.5, every=10),
            {0: 0.53, 9: 0.8, 19: 0.4, 29: 0.2},
        ),
        (InverseSquareRoot(1.0, warmup=4), {0: 0.2, 3: 0.8, 4: 1.0, 16: 0.5, 400: 0.1}),
        (
            InverseSquareRoot(1.0, warmup=4, cooldown=45),
            {3: 0.8, 16: 0.5, 64: 0.25, 100: 0.2 * 0.2, 109: 0.0, 400: 0.0},
        ),
        (InverseSquareRoot(1.0, warmup=9, cooldown=500), {4: 0.5, 9: 1.0, 36: 0.5 * 0.73}),
        (
            WarmupStableDecay(1.0, warmup=9, decay=40, final=0.2),
            {4: 0.5, 9: 1.0, 69: 1.0, 89: 0.6, 109: 0.2, 400: 0.2},
        ),
        (WarmupStableDecay(1.0, warmup=9), {9: 1.0, 108: 1.0, 109: 1.0, 500: 1.0}),
        (WarmupStableDecay(1.0, warmup=59, decay=500), {29: 0.5, 59: 1.0, 84: 0.5, 109: 0.0}),
    ],
)
def test_schedules_pass_through_their_points(schedule, points):
    rate, tripled = (each.build(steps=109) for each in (schedule, schedule.scaled(3.0)))
    for step, expected in points.items():
        np.testing.assert_allclose(rate(jnp.int32(step)), expected, atol=1e-6)
        np.testing.assert_allclose(tripled(jnp.int32(step)), 3 * expected, atol=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        WarmupCosine(1.0, warmup=5),
        WarmupLinear(1.0, warmup=5),
        WarmupExponential(1.0, warmup=5),
        InverseSquareRoot(1.0, warmup=5),
        InverseSquareRoot(1.0, warmup=5, cooldown=9),
        WarmupStableDecay(1.0, warmup=5),
        WarmupStableDecay(1.0, warmup=5, decay=9),
    ],
)
def test_a_schedule_that_does_not_end_is_the_same_for_runs_of_any_length(schedule):
    steps = jnp.arange(40)
    short, long = (jax.vmap(schedule.build(steps=n))(steps) for n in (40, 90))
    assert bool((short == long).all()) == (not schedule.ends)


def test_a_schedule_never_starts_with_a_step_lost():
    for schedule in (WarmupCosine(1.0, warmup=10), InverseSquareRoot(1.0, warmup=10)):
        assert schedule.build(steps=20)(0) > 0


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: AdamW(-1e-3), "learning_rate"),
        (lambda: AdamW(betas=(0.9, 1.0)), "betas"),
        (lambda: AdamW(weight_decay=-0.1), "weight_decay"),
        (lambda: SGD(momentum=1.0), "momentum"),
        (lambda: ClipByNorm(0.0), "limit"),
        (lambda: ClipByValue(-1.0), "limit"),
        (lambda: WarmupCosine(-1.0), "peak"),
        (lambda: WarmupLinear(1.0, warmup=-1), "warmup"),
        (lambda: WarmupExponential(1.0, every=0), "every"),
        (lambda: InverseSquareRoot(1.0, warmup=0), "warmup"),
    ],
)
def test_impossible_settings_are_refused_by_name(make, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        make()


def test_settings_survive_json():
    settings = AdamW(WarmupCosine(1e-3, warmup=10), clip=ClipByValue(1.0))
    assert Config.from_json(settings.to_json()) == settings


def test_a_built_optimizer_is_plain_optax():
    assert isinstance(AdamW().build(steps=1), optax.GradientTransformation)


def test_lion_takes_the_steps_of_the_paper():
    rate, (b1, b2), decay = 0.01, (0.8, 0.9), 0.1
    weights = np.array([[1.0, -2.0], [0.5, 3.0]])
    gradients = [np.array([[0.1, -0.2], [0.05, 0.4]]), np.array([[-0.9, 0.2], [-0.01, 0.1]])]
    optimizer = Lion(rate, betas=(b1, b2), weight_decay=decay).build(steps=9)
    parameters = jnp.asarray(weights)
    memory, mean, expected = optimizer.init(parameters), 0 * weights, weights
    for gradient in gradients:
        with jax.numpy_dtype_promotion("standard"):
            changes, memory = optimizer.update(jnp.asarray(gradient), memory, parameters)
        parameters = parameters + changes
        direction = np.sign(b1 * mean + (1 - b1) * gradient)
        mean = b2 * mean + (1 - b2) * gradient
        expected = expected - rate * (direction + decay * expected)
    np.testing.assert_allclose(parameters, expected, rtol=1e-5)


def test_adafactor_keeps_a_row_and_a_column_of_a_matrix():
    """The first step: the decay is 0, so that the factors are those of this gradient's square."""
    rate = 0.1
    weights = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    gradient = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    settings = Adafactor(rate, least=2, weight_decay=0.5)
    memory = settings.build(9).init(jnp.asarray(weights))
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(memory))
    assert sum(sizes) < 4 + 6 + 5
    got = updated(settings, jnp.asarray(weights), jnp.asarray(gradient))
    square = gradient**2
    rows, columns = square.mean(1, keepdims=True), square.mean(0, keepdims=True)
    change = gradient / np.sqrt(rows * columns / square.mean())
    change = change / max(1.0, np.sqrt((change**2).mean()))
    change = change * np.sqrt((weights**2).mean())
    np.testing.assert_allclose(got, weights - rate * (change + 0.5 * weights), rtol=1e-4)


@pytest.mark.parametrize(("relative", "layers"), [(True, 2), (False, 2), (True, 9)])
def test_adafactor_takes_the_same_steps_however_layers_are_stored(relative, layers):
    """Gradients of very unlike sizes in two layers, each of which is clipped by its own.

    Nine layers are more than the eight rows of a weight, and yet no axis to be factored.
    """
    config = families.gpt(vocab=11, dim=8, layers=layers, heads=2, context=8)
    single = filled(config)

    def stepped(layout):
        model = trainable(rebuild(single, config.edit(layout=layout)))
        sizes = {"blocks.groups.0": 1e-3, "blocks.groups.1": 1e3}

        def gradient(path, leaf):
            return jnp.sin(9 * leaf) * sizes.get(name(path)[:15], 1.0)

        plain = trainable(rebuild(single, config))
        gradients = jax.tree_util.tree_map_with_path(gradient, plain)
        gradients = trainable(rebuild(eqx.combine(gradients, single), config.edit(layout=layout)))
        moved = updated(Adafactor(0.1, relative=relative, least=4), model, gradients, steps=2)
        return named_arrays(moved)

    one, other = stepped(Unrolled()), stepped(Scanned())
    for path in one:
        np.testing.assert_allclose(one[path], other[path], rtol=2e-5, atol=2e-6, err_msg=path)


def test_copies_stacked_in_an_array_have_the_moments_that_each_has_alone():
    """Two steps of three layers and five experts, beside the optax of each of them."""
    random = np.random.default_rng(0)

    def numbers(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    def drawn():
        return Stacked(numbers(3, 2), numbers(3, 2, 4), numbers(5, 4))

    ours, plain = factored_moments(0.8, least=2), optax.scale_by_factored_rms(True, 0.8, 0, 2)
    model, gradients = drawn(), [drawn(), drawn()]
    state = ours.init(model)
    assert [x.shape for x in jax.tree.leaves(state.v_row)] == [(1,), (3, 2), (1,)]
    assert [x.shape for x in jax.tree.leaves(state.v_col)] == [(1,), (3, 4), (1,)]
    assert [x.shape for x in jax.tree.leaves(state.v)] == [(3, 2), (1,), (5, 4)]
    alone = {}
    for gradient in gradients:
        found, state = ours.update(gradient, state, model)
        for field in ("gain", "weight", "bias"):
            for place, (update, one) in enumerate(
                zip(getattr(gradient, field), getattr(model, field), strict=True)
            ):
                before = alone.get((field, place), plain.init(one))
                wanted, alone[field, place] = plain.update(update, before, one)
                np.testing.assert_allclose(getattr(found, field)[place], wanted, rtol=1e-6)
    assert state.count == 2


def test_arrays_without_copies_have_the_memory_that_optax_gives_them():
    model = trainable(Bigram(key=jax.random.key(0)))
    ours, plain = factored_moments(0.8, least=2), optax.scale_by_factored_rms(True, 0.8, 0, 2)
    states = [each.init(model) for each in (ours, plain)]
    for _ in range(2):
        (one, first), (other, second) = (
            each.update(model, state, model)
            for each, state in zip((ours, plain), states, strict=True)
        )
        states = [first, second]
        assert same_bits((one, first), (other, second))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lion(betas=(1.0, 0.9)), "`betas` must be at least 0 and below 1"),
        (lambda: Lion(weight_decay=-1.0), "`weight_decay` must not be negative"),
        (lambda: Lion(-1.0), "`learning_rate` must not be negative"),
        (lambda: Adafactor(momentum=1.0), "`momentum` must be at least 0 and below 1"),
        (lambda: Adafactor(limit=0.0), "`limit` must be above 0"),
        (lambda: Adafactor(decay=-0.1), "`decay` must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "settings",
    [Lion(), Adafactor(), Muon(others=Lion(3e-4))],
    ids=lambda settings: type(settings).__name__,
)
def test_every_optimizer_goes_to_json_and_back(settings):
    assert type(settings).from_dict(settings.to_dict()) == settings
