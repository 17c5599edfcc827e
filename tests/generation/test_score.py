"""The score of a text is the log-softmax of the model's logits, whatever the passes."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers.models import VOCAB, close, logits, model

TEXTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [3], [9, 10, 11]]


def same(found, numbers):
    assert len(found) == len(numbers)
    if numbers:
        close(np.array(found), np.array(numbers))


def expected(name, text, **options):
    """From the whole text at once."""
    ids = jnp.asarray([text])
    source = options.pop("source", None)
    given = (ids,) if source is None else (jnp.asarray([source]),)
    options = options if source is None else {**options, "target": ids}
    numbers = jax.nn.log_softmax(logits(model(name), *given, **options)[0], axis=-1)
    return [float(numbers[i, token]) for i, token in enumerate(text[1:])]


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_scores_are_the_log_softmax_of_the_logits_for_ragged_texts_and_any_passes(name, chunk):
    found = ef.score(model(name), TEXTS, chunk=chunk)
    assert [len(row) for row in found] == [8, 0, 2]
    for row, text in zip(found, TEXTS, strict=True):
        same(row, expected(name, text))


def test_few_places_at_a_time_give_the_same(monkeypatch):
    whole = ef.score(model("llama"), TEXTS)
    monkeypatch.setattr(sys.modules["eqxformer.generation.score"], "BLOCK", 5)
    jax.clear_caches()
    same(ef.score(model("llama"), TEXTS)[0], whole[0])


def test_in_windows_each_token_is_scored_given_half_a_window_at_least():
    text = [*range(12), 3, 1, 4, 1, 5]
    (found,) = ef.score(model("llama"), [text], window=6)
    whole = [ef.score(model("llama"), [text[begin : begin + 6]])[0] for begin in range(0, 13, 3)]
    same(found, whole[0] + [number for numbers in whole[1:] for number in numbers[2:]])
    same(ef.score(model("llama"), [text], window=17)[0], ef.score(model("llama"), [text])[0])
    assert len(ef.score(model("gpt"), [text * 3], window=24)[0]) == 50  # it has 24 positions


def test_targets_are_scored_given_their_sources():
    sources = [[1, 2, 3], [4, 5], [6]]
    found = ef.score(model("t5"), TEXTS, source=sources)
    for row, text, source in zip(found, TEXTS, sources, strict=True):
        same(row, expected("t5", text, source=source))


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match=f"below {VOCAB}; got {VOCAB}"):
        ef.score(model("llama"), [[1, VOCAB]])
    with pytest.raises(ValueError, match="needs a `source`"):
        ef.score(model("t5"), TEXTS)
    with pytest.raises(ValueError, match="`window` must be at least 2"):
        ef.score(model("llama"), TEXTS, window=1)
    with pytest.raises(ValueError, match="24 positions"):
        ef.score(model("gpt"), [[1] * 26])
