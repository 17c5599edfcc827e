"""The moving average of the weights, against the same sum in NumPy."""

import jax
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers.compare import same_bits
from tests.training.tiny import Bigram

BATCH = ef.TokenBatch(np.arange(10, dtype=np.int32).reshape(2, 5) % 5)


def run(optimizer, steps, **options):
    chain = optimizer.build(steps)
    state = ef.TrainState.create(
        Bigram(key=jax.random.key(0)), chain, key=jax.random.key(1), **options
    )
    step, seen = ef.make_step(ef.NextToken(), chain), [np.asarray(state.model.output)]
    for _ in range(steps):
        state, _ = step(state, BATCH)
        seen.append(np.asarray(state.model.output))
    return state, seen


def test_the_average_is_that_of_the_weights_and_does_not_enter_training():
    state, seen = run(ef.Averaged(ef.AdamW(0.1), decay=0.4), 12)
    plain, _ = run(ef.AdamW(0.1), 12)
    assert same_bits(state.model, plain.model)
    mean = seen[0].astype(np.float64)
    for t, weights in enumerate(seen[1:], start=1):
        decay = min(0.4, (1 + t) / (10 + t))
        mean = decay * mean + (1 - decay) * weights
    np.testing.assert_allclose(state.averaged.output, mean, rtol=1e-5, atol=1e-6)
    assert not np.allclose(state.averaged.output, state.model.output, atol=1e-3)
    assert state.averaged.name == "bigram"


def test_what_is_not_trained_is_the_model_s_own_in_the_average():
    state, _ = run(ef.Averaged(ef.SGD(0.1)), 3, trains=ef.Except(paths=("embedding",)))
    assert same_bits(state.averaged.embedding, state.model.embedding)
    assert not same_bits(state.averaged.output, state.model.output)


def test_without_averages_the_model_is_as_it_is():
    state, _ = run(ef.SGD(0.1), 1)
    assert state.averaged is state.model


def test_the_decay_is_a_share():
    with pytest.raises(ValueError, match="`decay` must be at least 0 and below 1; got 1.0"):
        ef.Averaged(ef.SGD(0.1), decay=1.0)
