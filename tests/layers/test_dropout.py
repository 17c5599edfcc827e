"""Dropout of numbers and of branches: the mean stays, the key decides, the rate is checked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.layers.dropout import check_rate

X = jnp.ones((100, 20, 20))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_drops_at_its_rate(rate):
    y = np.asarray(ef.dropout(X, rate, jax.random.key(0)))
    assert set(np.unique(y)) == {0.0, np.float32(1 / (1 - rate))}
    error = np.sqrt(rate * (1 - rate) / y.size)
    assert abs((y == 0).mean() - rate) < 5 * error
    assert abs(y.mean() - 1) < 5 * error / (1 - rate)


def test_stochastic_depth_drops_whole_sequences():
    y = np.asarray(ef.drop_path(jnp.ones((4000, 3, 2)), 0.25, jax.random.key(0)))
    assert (y == y[:, :1, :1]).all()
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert abs((y[:, 0, 0] == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)


def test_stochastic_depth_takes_one_sequence_or_batches_of_batches():
    for shape in [(3, 2), (5, 3, 2), (4, 5, 3, 2)]:
        y = np.asarray(ef.drop_path(jnp.ones(shape), 0.5, jax.random.key(1)))
        assert y.shape == shape
        assert (y == y[..., :1, :1]).all()


@pytest.mark.parametrize("drop", [ef.dropout, ef.drop_path])
def test_without_a_key_or_a_rate_nothing_is_dropped(drop):
    assert drop(X, 0.5, None) is X
    assert drop(X, 0.0, jax.random.key(0)) is X


@pytest.mark.parametrize("drop", [ef.dropout, ef.drop_path])
def test_gradients_pass_through_what_was_kept(drop):
    y, pull = jax.vjp(lambda x: drop(x, 0.5, jax.random.key(0)), X)
    assert (pull(jnp.ones_like(y))[0] == y).all()


@pytest.mark.parametrize("drop", [ef.dropout, ef.drop_path])
def test_dropout_drops_a_nan_with_its_number_and_keeps_the_type(drop):
    y = drop(jnp.full((64, 1, 1), jnp.nan, jnp.bfloat16), 0.5, jax.random.key(0))
    assert y.dtype == jnp.bfloat16
    assert 10 < (y == 0).sum() < 54


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_a_rate_outside_zero_to_one_is_refused(rate):
    with pytest.raises(ValueError, match=f"`dropout` must be at least 0 and below 1; got {rate}."):
        check_rate("dropout", rate)
