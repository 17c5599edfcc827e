"""The score of a text is the log-softmax of the model's logits, whatever the passes."""

import sys

import numpy as np
import pytest

import eqxformer as ef
from tests.generation.beam_twin import log_softmax
from tests.generation.small import small
from tests.helpers import twins
from tests.helpers.models import VOCAB, close, model

TEXTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [3], [9, 10, 11]]


def same(found, numbers):
    assert len(found) == len(numbers)
    if numbers:
        close(np.array(found), np.array(numbers))


def expected(name, text, source=None):
    """From the whole text at once, by the twin in NumPy."""
    plain, ids = twins.plain(model(name)), np.array(text)
    if source is None:
        logits = twins.decoder(plain, ids)
    else:
        logits = twins.encoder_decoder(plain, np.array(source), ids)
    return [log_softmax(logits[i])[token] for i, token in enumerate(text[1:])]


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_scores_are_the_log_softmax_of_the_logits_for_ragged_texts_and_any_passes(name, chunk):
    found = ef.score(model(name), TEXTS, chunk=chunk)
    assert [len(row) for row in found] == [8, 0, 2]
    for row, text in zip(found, TEXTS, strict=True):
        same(row, expected(name, text))


def test_few_places_at_a_time_give_the_same(monkeypatch):
    """By a model that no other test compiles with more places."""
    monkeypatch.setattr(sys.modules["eqxformer.generation.score"], "BLOCK", 5)
    found = ef.score(model("relative"), TEXTS)
    for row, text in zip(found, TEXTS, strict=True):
        same(row, expected("relative", text))


def test_in_windows_each_token_is_scored_given_half_a_window_at_least():
    text = [*range(12), 3, 1, 4, 1, 5]
    (found,) = ef.score(small("llama"), [text], window=6)
    whole = [ef.score(small("llama"), [text[begin : begin + 6]])[0] for begin in range(0, 13, 3)]
    same(found, whole[0] + [number for numbers in whole[1:] for number in numbers[2:]])
    same(ef.score(small("llama"), [text], window=17)[0], ef.score(small("llama"), [text])[0])
    assert len(ef.score(small("gpt"), [text * 3], window=24)[0]) == 50  # it has 24 positions


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
