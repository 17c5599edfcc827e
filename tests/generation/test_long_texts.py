"""Rotary positions that depend on the length of the text: read in one pass, and never mixed."""

import equinox as eqx
import jax
import numpy as np
import pytest

import eqxformer as ef
from tests.generation.beam_twin import log_softmax
from tests.helpers import twins
from tests.helpers.models import filled

TRAINED = 24
SCALINGS = {
    "LongRoPE": ef.LongRoPE((1.0, 1.1, 1.2, 1.3), (1.0, 2.0, 4.0, 8.0), TRAINED, 4.0),
    "dynamic NTK": ef.DynamicNTK(4.0, TRAINED),
    "YaRN": ef.YaRN(4.0, TRAINED),
}
TEXTS = [
    np.random.default_rng(row).integers(0, 31, size).tolist() for row, size in enumerate((40, 9))
]


@pytest.fixture(scope="module", params=SCALINGS)
def model(request):
    config = ef.families.llama(vocab=31, dim=16, layers=1, heads=2, hidden=16)
    rotary = ef.Rotary(base=100.0, scaling=SCALINGS[request.param])
    return filled(config.edit("blocks.*.attention", rotary=rotary))


@pytest.fixture
def short_passes(monkeypatch):
    monkeypatch.setattr("eqxformer.generation.prompts.LONGEST", 16)


def by_length(model):
    return model.config.blocks[0].attention.rotary.scaling.by_length


def logits(model, text):
    """Those of the twin in NumPy, which reads the whole text."""
    return twins.decoder(twins.plain(model), np.array(text))


def test_prompts_are_read_as_the_model_reads_them_whole(model, short_passes):
    state, found = ef.prefill(model, TEXTS, slots=48), ef.score(model, TEXTS)
    for text, last, numbers in zip(TEXTS, np.asarray(state.logits), found, strict=True):
        whole = logits(model, text)
        np.testing.assert_allclose(last, whole[-1], atol=2e-4)
        expected = [log_softmax(whole[place])[token] for place, token in enumerate(text[1:])]
        np.testing.assert_allclose(numbers, expected, atol=2e-4)


def test_a_prompt_that_must_be_read_at_once_is_not_read_in_chunks(model):
    if not by_length(model):
        ef.prefill(model, TEXTS, slots=48, chunk=16)
        return
    with pytest.raises(ValueError, match=r"of more than 24 tokens.* 40 tokens .* got chunk=16"):
        ef.prefill(model, TEXTS, slots=48, chunk=16)
    ef.prefill(model, TEXTS, slots=48, chunk=40)
    ef.prefill(model, [TEXTS[1]], slots=48, chunk=4)  # no longer than those of the training


def test_a_text_does_not_grow_beyond_the_length_at_which_all_its_places_turn(model):
    text = TEXTS[0][:20]
    (made,) = ef.generate(model, [text], max_new_tokens=5, slots=48)
    assert len(made) == 5  # the last one is never read
    state = ef.prefill(model, [text], slots=48)
    if not isinstance(model.config.blocks[0].attention.rotary.scaling, ef.LongRoPE):
        assert len(ef.decode(model, state, max_new_tokens=6).new_tokens()[0]) == 6
        ef.append(model, state, [[1] * 5])
        return
    for grow in (
        lambda: ef.generate(model, [TEXTS[1], text], max_new_tokens=6),
        lambda: ef.decode(model, state, max_new_tokens=6),
        lambda: ef.append(model, state, [[1] * 5]),
        lambda: ef.beam_search(model, [text], beams=2, max_new_tokens=6, stop=0),
    ):
        with pytest.raises(ValueError, match=r"Row \d has 20 tokens and would grow to 25.*stop at"):
            grow()
    for _ in range(5):  # one by one, of which the newest is read with the next
        state = ef.decode(model, state, max_new_tokens=1)
    with pytest.raises(ValueError, match="Row 0 has 24 tokens and would grow to 25"):
        ef.decode(model, state, max_new_tokens=1)


def test_the_row_that_is_named_is_the_one_that_grows_too_long(model):
    if not isinstance(model.config.blocks[0].attention.rotary.scaling, ef.LongRoPE):
        pytest.skip("other scalings have no such length")
    state = ef.prefill(model, [TEXTS[0][:21], TEXTS[0][:20]], slots=48)
    state = eqx.tree_at(lambda s: s.finished, state, jax.device_put(np.array([True, False])))
    with pytest.raises(ValueError, match="Row 1 has 20 tokens and would grow to 25"):
        ef.decode(model, state, max_new_tokens=6)
    assert ef.decode(model, state, max_new_tokens=4).new_tokens()[0] == []


def test_a_longer_text_grows_as_the_model_reads_it_whole(model, short_passes):
    (made,) = ef.generate(model, [TEXTS[0]], max_new_tokens=3)
    if isinstance(model.config.blocks[0].attention.rotary.scaling, ef.DynamicNTK):
        assert made[0] == logits(model, TEXTS[0])[-1].argmax()
        return  # the keys of a text that grows stay as they were turned, as in transformers
    text = list(TEXTS[0])
    for token in made:
        assert token == logits(model, text)[-1].argmax()
        text.append(token)
