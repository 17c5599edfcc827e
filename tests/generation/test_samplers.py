"""Samplers: small values that choose a token per row, each row by its own key."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef

LOGITS = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]]))
ROWS = 4000


def _draw(sampler, logits, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(logits))
    return np.asarray(eqx.filter_jit(sampler)(logits, keys))


def _shares(sampler, row):
    drawn = _draw(sampler, jnp.broadcast_to(LOGITS[row], (ROWS, 4)))
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


def test_a_row_draws_by_its_own_key_whatever_the_others_are():
    logits = jnp.broadcast_to(LOGITS[:1], (6, 4))
    keys = jax.random.split(jax.random.key(1), 6)
    every = np.asarray(ef.Sample()(logits, jax.random.clone(keys)))
    alone = [int(ef.Sample()(logits[i : i + 1], keys[i : i + 1])[0]) for i in range(6)]
    np.testing.assert_array_equal(every, alone)
    assert len(set(every)) > 1


def test_half_precision_logits_are_drawn_in_single():
    logits = jnp.zeros((ROWS, 300), jnp.bfloat16)  # bfloat16 could not add up 300 equal shares
    drawn = _draw(ef.Sample(), logits)
    assert drawn.dtype == np.int32
    assert len(np.unique(drawn)) > 290


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
