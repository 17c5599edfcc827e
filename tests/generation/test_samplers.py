"""Samplers: small values that choose a token per row, each row by its own key."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

import eqxformer as ef
from eqxformer.generation.samplers import BLOCK, as_sampler, draw, place_of
from tests.generation import twins

LOGITS = jnp.asarray(np.log([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]]), jnp.float32)
ROWS = 4000


@eqx.filter_jit
def run(sampler, logits, keys):
    """The tokens that are chosen, compiled once for all tests of this kind of sampler."""
    return sampler(logits, keys)


def _draw(sampler, logits, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(logits))
    return np.asarray(run(sampler, logits, keys))


def _surprise(drawn, expected):
    """How unlikely so great a chi-square of these counts is, and whether only the possible came."""
    counts = np.bincount(drawn, minlength=len(expected))
    possible = expected > 0
    assert counts[~possible].sum() == 0
    distance = counts[possible] - expected[possible] * len(drawn)
    statistic = (distance**2 / (expected[possible] * len(drawn))).sum()
    return chi2.sf(statistic, max(possible.sum() - 1, 1))


def _shares(sampler, row):
    drawn = _draw(sampler, jnp.asarray(np.tile(LOGITS[row], (ROWS, 1))))
    return np.bincount(drawn, minlength=4) / ROWS


def test_greedy_takes_the_largest_and_the_first_of_equals():
    logits = jnp.array([[0.0, 2.0, 1.0], [1.0, 0.0, 1.0], [-jnp.inf, -jnp.inf, -1.0]])
    np.testing.assert_array_equal(ef.Greedy()(logits, None), [1, 0, 2])
    assert not ef.Greedy().needs_key


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sample_draws_from_the_softmax_at_its_temperature(temperature):
    powers = np.exp(np.asarray(LOGITS[0]) / temperature)
    expected = powers / powers.sum()
    error = np.sqrt(expected * (1 - expected) / ROWS)
    assert (np.abs(_shares(ef.Sample(temperature), 0) - expected) < 4.5 * error).all()


def test_top_k_keeps_the_likeliest_and_their_proportions():
    found = _shares(ef.Sample(top_k=2), 1)
    expected = np.array([0, 0, 3 / 7, 4 / 7])
    assert (found[:2] == 0).all()
    assert (np.abs(found - expected) < 4.5 * np.sqrt(0.25 / ROWS)).all()


def test_top_k_of_one_is_greedy_and_of_more_than_all_changes_nothing():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((50, 7)), jnp.float32)
    np.testing.assert_array_equal(_draw(ef.Sample(5.0, top_k=1), logits), ef.Greedy()(logits, None))
    np.testing.assert_array_equal(_draw(ef.Sample(top_k=99), logits), _draw(ef.Sample(), logits))


def test_a_tiny_temperature_is_greedy_and_does_not_overflow():
    logits = jnp.array([[0.0, 300.0, 299.0]])
    assert _draw(ef.Sample(1e-30), logits)[0] == 1


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_row_draws_by_its_own_key_whatever_the_others_are(kind):
    logits = jnp.asarray(np.tile(LOGITS[0], (6, 1)))
    keys = jax.random.split(jax.random.key(1, impl=kind), 6)
    every = np.asarray(run(ef.Sample(), logits, jax.random.clone(keys)))
    alone = [int(run(ef.Sample(), logits[:1], keys[i : i + 1])[0]) for i in range(6)]
    np.testing.assert_array_equal(every, alone)
    assert len(set(every)) > 1


@pytest.mark.parametrize("place", range(4))
def test_every_word_of_a_long_key_counts(place):
    words = np.zeros((200, 4), np.uint32)
    words[:, place] = np.arange(200)
    keys = jax.random.wrap_key_data(jnp.asarray(words), impl="rbg")
    drawn = np.asarray(run(ef.Sample(), jnp.zeros((200, 100)), keys))
    assert len(np.unique(drawn)) > 50


def test_half_precision_logits_are_drawn_in_single():
    logits = jnp.zeros((ROWS, 300), jnp.bfloat16)  # bfloat16 could not add up 300 equal shares
    drawn = _draw(ef.Sample(), logits)
    assert drawn.dtype == np.int32
    assert len(np.unique(drawn)) > 290


# Processors before samplers, and in their place

ROW = np.random.default_rng(5).standard_normal(12).astype(np.float32) * 1.5

DRAWING = {
    "temperature": (ef.Temperature(0.6), ROW / 0.6),
    "top_k": (ef.TopK(5), twins.kept(ROW, twins.top_k(ROW, 5))),
    "top_p": (ef.TopP(0.8), twins.kept(ROW, twins.top_p(ROW, 0.8))),
    "min_p": (ef.MinP(0.15), twins.kept(ROW, twins.min_p(ROW, 0.15))),
    "typical": (ef.Typical(0.7), twins.kept(ROW, twins.typical(ROW, 0.7))),
    "epsilon": (ef.Epsilon(0.05), twins.kept(ROW, twins.epsilon(ROW, 0.05))),
    "bias": (ef.LogitBias({1: 2.0, 3: -np.inf}), twins.bias(ROW, [], 0, {1: 2.0, 3: -np.inf})),
    "several": (
        ef.Temperature(2.0) | ef.TopK(6) | ef.Sample(0.5),
        2.0 * (ROW / 2.0 + twins.kept(0 * ROW, twins.top_k(ROW, 6))),
    ),
}


@pytest.mark.parametrize("name", DRAWING)
def test_a_processor_in_place_of_a_sampler_draws_from_what_it_leaves(name):
    sampler, left = DRAWING[name]
    sampler = as_sampler(sampler)
    assert sampler.needs_key
    drawn = _draw(sampler, jnp.asarray(np.tile(ROW, (ROWS, 1))), seed=3)
    assert _surprise(drawn, twins.softmax(left)) > 1e-3


def test_the_order_of_a_pipe_is_the_order_in_which_it_happens():
    logits = jnp.asarray(np.log([[0.5, 0.3, 0.2]]), jnp.float32)
    for sampler, possible in (
        (ef.Temperature(9.0) | ef.TopP(0.4) | ef.Sample(), [1, 1, 0]),
        (ef.TopP(0.4) | ef.Sample(9.0), [1, 0, 0]),
        (ef.TopP(0.4) | (ef.Temperature(9.0) | ef.Sample()), [1, 0, 0]),
    ):
        left = eqx.filter_jit(sampler.process)(logits)
        np.testing.assert_array_equal(np.isfinite(left), [possible])


def test_a_processor_before_greedy_draws_nothing():
    sampler = ef.Suppress((3,)) | ef.LogitBias({0: -9.0}) | ef.Greedy()
    assert isinstance(sampler, ef.Sampler)
    assert not sampler.needs_key
    np.testing.assert_array_equal(run(sampler, LOGITS, None), [1, 2])


def test_another_temperature_or_top_k_compiles_nothing_anew():
    traced = []

    @eqx.filter_jit
    def run(sampler, logits, keys):
        traced.append(1)
        return sampler(logits, keys)

    for seed, sampler in enumerate((ef.Sample(0.5, 2), ef.Sample(2.0, 3), ef.Sample(1.0, 99))):
        run(sampler, LOGITS, jax.random.split(jax.random.key(seed), 2))
    assert len(traced) == 1


# Drawing by blocks


@pytest.mark.parametrize("vocab", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_draws_are_spread_as_the_softmax_over_vocabularies_of_any_number_of_blocks(vocab):
    random = np.random.default_rng(vocab)
    row = np.where(random.random(vocab) < 0.9, -np.inf, random.standard_normal(vocab))
    row[[0, -1]] = 1.0
    logits = jnp.asarray(np.tile(row, (ROWS, 1)), jnp.float32)
    drawn = np.asarray(jax.jit(draw)(logits, jax.random.split(jax.random.key(1), ROWS)))
    assert _surprise(drawn, twins.softmax(row)) > 1e-3


def test_what_is_forbidden_is_never_drawn_and_what_is_alone_always_is():
    keys = jax.random.split(jax.random.key(2), ROWS)
    alone = np.full((ROWS, 700), -np.inf, np.float32)
    place = np.arange(ROWS) % 700
    alone[np.arange(ROWS), place] = -80.0
    np.testing.assert_array_equal(jax.jit(draw)(jnp.asarray(alone), keys), place)


def test_sums_rounded_in_parallel_never_lead_to_a_place_without_weight():
    random = np.random.default_rng(0)
    weights = np.exp(random.standard_normal((3000, BLOCK)) * 4).astype(np.float32)
    weights[random.random(weights.shape) < 0.7] = 0.0
    in_parallel = jax.jit(lambda x: jax.lax.associative_scan(jnp.add, x, axis=-1))
    sums = np.asarray(in_parallel(jnp.asarray(weights)))
    rises = (np.diff(sums, axis=1) > 0) & (weights[:, 1:] == 0)
    assert rises.any()
    row, place = np.nonzero(rises)  # a number between the sums before and after such a place
    uniform = np.float32(sums[row, place]) / sums[row].max(-1)
    found = jax.jit(place_of)(
        jnp.asarray(uniform)[:, None], jnp.asarray(weights[row]), jnp.asarray(sums[row])
    )
    assert (weights[row, found] > 0).all()


def test_equally_likely_ids_of_a_large_vocabulary_come_equally_often():
    """Also where one number for all of them would be too coarse: half of the mass is on one id."""
    logits = np.zeros((20_000, 2 * BLOCK), np.float32)
    logits[:, BLOCK] = np.log(2.0 * BLOCK - 1)
    keys = jax.random.split(jax.random.key(3), 20_000)
    drawn = np.asarray(jax.jit(draw)(jnp.asarray(logits), keys))
    expected = np.full(2 * BLOCK, 0.5 / (2 * BLOCK - 1))
    expected[BLOCK] = 0.5
    assert _surprise(drawn, expected) > 1e-3


# Rows without a token

NOTHING = {
    "everything is forbidden": [-np.inf, -np.inf, -np.inf],
    "a logit is NaN": [1.0, np.nan, 2.0],
    "a logit is infinite": [1.0, np.inf, 2.0],
}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("sampler", [ef.Greedy(), ef.Sample(0.7, 2), ef.TopP(0.5) | ef.Sample()])
def test_a_row_without_a_token_is_an_error_and_minus_one_where_that_cannot_be_seen(name, sampler):
    logits = jnp.array([[0.0, 9.0, 0.0], NOTHING[name]])
    found = _draw(sampler, logits)
    assert found.tolist() == [1, -1]
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(ValueError, match="Row 1 has no token to choose: its logits are NaN or"):
        sampler(logits, keys)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    with pytest.raises(ValueError, match=r"`temperature` must be above 0.*use `Greedy\(\)`"):
        ef.Sample(temperature)


@pytest.mark.parametrize("top_k", [0, -3])
def test_a_top_k_below_one_is_refused(top_k):
    with pytest.raises(ValueError, match="`top_k` must be positive"):
        ef.Sample(top_k=top_k)


def test_sampling_without_keys_is_refused():
    assert ef.Sample().needs_key
    with pytest.raises(ValueError, match="draws at random and needs a key per row"):
        ef.Sample()(LOGITS, None)
