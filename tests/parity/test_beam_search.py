"""Beam search finds what transformers finds: the same texts with the same scores."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

import eqxformer as ef
from tests.parity.cases import CASES, grouped
from tests.parity.live import store

PAIRS = [(3, 1.0), (4, 0.0), (4, 2.0), (5, 0.6)]
EARLY = [False, True, "never"]
NEW = 9
PROMPTS = [[5, 17, 23, 9, 40, 31], [11, 8, 30], [44, 12]]
NAMES = ["gpt2", "llama", "gemma2-unbounded", "t5", "bart", "marian"]
EVEN = {"t5": {"num_layers": 2}}  # their cache of T5 needs as many layers on either side


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The hot reference of a case, and ours from its checkpoint, made once."""

    @functools.cache
    def find(name):
        folder = tmp_path_factory.mktemp("stored") / name
        case = CASES[name]
        settings = {**case.settings, **EVEN.get(name, {})}
        reference = dataclasses.replace(case, settings=settings).reference("hot")
        reference.generation_config.forced_eos_token_id = None
        store(reference, folder)
        return reference, ef.from_pretrained(folder)

    return find


def theirs(reference, prompts, *, beams, stop, penalty=1.0, early=False, left=True, **options):
    """Texts and scores by the reference, of prompts padded on the left, or on the right."""
    longest = max(map(len, prompts))
    spaces = [[0] * (longest - len(prompt)) for prompt in prompts]
    rows = [s * left + p + s * (not left) for s, p in zip(spaces, prompts, strict=True)]
    real = [[token > 0 for token in row] for row in rows]
    out = reference.generate(
        input_ids=torch.tensor(rows),
        attention_mask=torch.tensor(real).long(),
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=penalty,
        early_stopping=early,
        eos_token_id=list(stop),
        pad_token_id=0,
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    begin = 1 if reference.config.is_encoder_decoder else longest
    texts = out.sequences[:, begin:].reshape(len(prompts), beams, -1).tolist()
    scores = out.sequences_scores.reshape(len(prompts), beams).tolist()
    return [[cut(text, stop) for text in row] for row in texts], scores


def cut(text, stop):
    """The text up to its first stop id, and with it."""
    ends = [place for place, token in enumerate(text) if token in stop]
    return text[: ends[0] + 1] if ends else text


def ours(reference, built, prompts, *, beams, stop, penalty=1.0, early=False, processor=None):
    """Texts and scores by ours."""
    config = reference.config
    return ef.beam_search(
        built,
        prompts,
        beams=beams,
        best=beams,
        max_new_tokens=NEW,
        length_penalty=penalty,
        early_stopping=early,
        processor=processor,
        start=config.decoder_start_token_id if config.is_encoder_decoder else None,
        stop=stop,
    )


def same(found, wanted):
    """Asserts equal texts, and scores equal to rounding."""
    assert found[0] == wanted[0]
    np.testing.assert_allclose(found[1], wanted[1], rtol=0, atol=1e-4)


def frequent(texts):
    """The id that stands most often in the middle of texts."""
    middle = [token for row in texts for text in row for token in text[1:-2]]
    return max(sorted(set(middle)), key=middle.count)


@pytest.mark.parametrize("name", grouped(NAMES))
def test_all_beams_are_theirs(name, both):
    reference, built = both(name)
    stop, lengths = (frequent(ours(reference, built, PROMPTS, beams=4, stop=(1,)).tokens),), set()
    left = not reference.config.is_encoder_decoder
    for beams, penalty in PAIRS:
        for early in EARLY:
            options = {"beams": beams, "penalty": penalty, "early": early, "stop": stop}
            found = ours(reference, built, PROMPTS, **options)
            same(found, theirs(reference, PROMPTS, **options, left=left))
            lengths |= {len(text) for row in found.tokens for text in row}
    assert len(lengths) > 2  # texts ended in the middle, at several places


@pytest.mark.parametrize("name", grouped(["llama", "t5"]))
def test_processors_see_the_beams_that_theirs_see(name, both):
    reference, built = both(name)
    prompts = [prompt * 3 for prompt in ([5, 17], [8, 30], [44, 12])]  # theirs would see padding
    processor = ef.RepetitionPenalty(1.4) | ef.NoRepeatNGram(2) | ef.BadWords([[9], [3, 4]])
    free = ours(reference, built, prompts, beams=4, stop=(1,), processor=processor).tokens
    stop, ends = (frequent(free), 7), set()
    processor = processor | ef.MinNewTokens(2, stop=stop) | ef.Force({-1: stop[1]})
    settings = {
        "repetition_penalty": 1.4,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[9], [3, 4]],
        "min_new_tokens": 2,
        "forced_eos_token_id": stop[1],
    }
    for early, penalty in ((False, 0.6), (True, 0.0), ("never", 2.0)):
        options = {"beams": 4, "penalty": penalty, "early": early, "stop": stop}
        found = ours(reference, built, prompts, **options, processor=processor)
        same(found, theirs(reference, prompts, **options, **settings))
        ends |= {text[-1] for row in found.tokens for text in row}
    assert ends == set(stop)
