import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.losses import scores
from eqxformer.losses.objective import Answer, Question
from eqxformer.training.callbacks import perplexity
from tests.helpers.hot import drawn
from tests.helpers.models import logits

CONFIG = ef.families.gpt(vocab=13, dim=8, layers=1, heads=2, context=8)
RANDOM = np.random.default_rng(0)
BATCH = ef.TokenBatch(
    jax.device_put(np.int32(RANDOM.integers(0, 13, (3, 9)))),
    jax.device_put(np.float32(RANDOM.uniform(0, 2, (3, 9)))),
)


class OnlyCallable(eqx.Module):
    """A model of one's own: it gives logits and no more."""

    model: ef.DecoderLM

    def __call__(self, tokens, *, key=None):
        return self.model(tokens, key=key)


def twin(logits, targets, weights):
    """Sums over tokens, one by one."""
    total = right = 0.0
    for row in np.ndindex(targets.shape):
        scores = np.asarray(logits[row], np.float64)
        total += weights[row] * (np.log(np.exp(scores).sum()) - scores[targets[row]])
        right += weights[row] * (int(np.argmax(scores)) == targets[row])
    return total, right


def test_scores_are_those_of_each_token():
    model = drawn(CONFIG)
    tokens, weights = np.asarray(BATCH.tokens), np.asarray(BATCH.weights)[:, 1:]
    total, right = twin(np.asarray(logits(model, tokens[:, :-1])), tokens[:, 1:], weights)
    assert 0 < right < weights.sum()
    for each in (model, OnlyCallable(model)):
        found = eqx.filter_jit(ef.TokenScores())(each, BATCH)
        assert set(found.metrics) == {"cross_entropy", "accuracy"}
        np.testing.assert_allclose(found.total, total, rtol=1e-6)
        np.testing.assert_allclose(found.metrics["cross_entropy"], total, rtol=1e-6)
        np.testing.assert_allclose(found.metrics["accuracy"], right, rtol=1e-6)
        np.testing.assert_allclose(found.weight, weights.sum(), rtol=1e-6)


def test_scores_of_an_encoder_decoder_are_without_what_training_adds():
    config = ef.families.transformer(vocab=13, dim=8, layers=1, heads=2, hidden=8)
    model, loss = drawn(config), ef.SequenceToSequence(label_smoothing=0.3, z_loss=0.1)
    tokens, weights = np.asarray(BATCH.tokens), np.asarray(BATCH.weights)
    batch = ef.PairBatch(tokens[:, :5], tokens, target_weights=weights)
    given = np.asarray(logits(model, batch.source, batch.target[:, :-1]))
    found = eqx.filter_jit(scores.measured(loss))(model, batch)
    expected = twin(given, tokens[:, 1:], weights[:, 1:])
    np.testing.assert_allclose((found.total, found.metrics["accuracy"]), expected, rtol=1e-6)


@pytest.mark.parametrize("chunk", [5, 8, 24])
def test_scores_in_chunks_are_those_of_all_tokens_at_once(chunk, monkeypatch):
    logits = jnp.asarray(RANDOM.standard_normal((3, 8, 13)), jnp.float32)
    hidden = logits.at[1, 2].set(jnp.nan)  # where nothing counts not even this does
    targets, weights = BATCH.tokens[:, 1:], BATCH.weights[:, 1:].at[1, 2].set(0.0)
    expected = twin(np.asarray(logits), np.asarray(targets), np.asarray(weights))
    monkeypatch.setattr(scores, "_CHUNK", chunk)
    found = scores._scores(Answer(hidden), Question((), {}, targets, weights))
    np.testing.assert_allclose((found.total, found.metrics["accuracy"]), expected, rtol=1e-6)


def test_validation_publishes_perplexity_and_accuracy():
    published = {}

    class Log(ef.Callback):
        def recorded(self, record):
            published.update(record.values)

    ef.Trainer(
        drawn(CONFIG),
        lambda step: BATCH,
        ef.AdamW(1e-3).build(1),
        1,
        key=jax.random.key(0),
        callbacks=[Log(), ef.Validate([BATCH, BATCH], every=1, loss=ef.TokenScores())],
    ).fit()
    names = {"validation_loss", "validation_accuracy", "validation_perplexity"}
    assert {name for name in published if name.startswith("validation")} == names
    assert 0 <= published["validation_accuracy"] <= 1
    expected = np.exp(published["validation_loss"])
    np.testing.assert_allclose(published["validation_perplexity"], expected, rtol=1e-6)


def test_a_perplexity_too_large_for_a_number_is_infinite():
    assert perplexity(1e5) == np.inf
    assert perplexity(709.0) < np.inf
    assert np.isnan(perplexity(np.nan))
