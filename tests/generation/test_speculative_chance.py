"""Text that is drawn with speculation has the distribution of the model, whatever is proposed."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import eqxformer as ef
from tests.generation import twins
from tests.generation.speculation import (
    CHANCE,
    NEW,
    PROMPTS,
    assert_some_were_kept_and_some_not,
    built,
    nudged,
)
from tests.generation.test_generate import Counting, Tally
from tests.helpers.models import filled, logits

TEXT = 4
PENALTY, TEMPERATURE = 1.3, 0.6
DRAWN = ef.RepetitionPenalty(PENALTY) | ef.Sample(TEMPERATURE)


@functools.cache
def expected():
    """The probability of each text of four tokens that may follow the prompt."""
    prompt, built = [1, 3], filled(CHANCE)
    texts = np.array([[*prompt, *rest] for rest in itertools.product(range(4), repeat=TEXT)])
    scores = np.asarray(logits(built, jnp.asarray(texts)), np.float64)
    total = np.ones(len(texts))
    for row, text in enumerate(texts):
        for place in range(2, 2 + TEXT):
            left = twins.repetition(scores[row, place - 1], text[:place], 2, PENALTY) / TEMPERATURE
            total[row] *= twins.softmax(left)[text[place]]
    return total


@pytest.mark.parametrize("draft", ["looks", "reads"])
def test_drawn_texts_have_the_distribution_of_the_model(draft):
    """Chi-square over all 256 texts, rare ones together, from 4000 rows.

    A right sampler exceeds the quantile for 0.999 with one seed of a thousand. The draft model is a
    stranger, so that most proposals are rejected and what is left decides.
    """
    stranger = filled(CHANCE, seed=7)
    draft = ef.PromptLookup(1, 2) if draft == "looks" else ef.DraftModel(stranger, ahead=2)
    rows = 4000
    made = ef.generate_speculative(
        filled(CHANCE),
        np.tile(np.array([1, 3]), (rows, 1)),
        draft=draft,
        max_new_tokens=TEXT,
        sampler=DRAWN,
        slots=6,
        key=jax.random.key(11),
    )
    counts = np.bincount(np.asarray(made.tokens) @ 4 ** np.arange(TEXT)[::-1], minlength=256)
    wanted = rows * expected()
    np.testing.assert_allclose(wanted.sum(), rows, rtol=1e-5)
    rare = wanted < 5
    counts, wanted = (np.append(x[~rare], x[rare].sum()) for x in (counts, wanted))
    distance = ((counts - wanted) ** 2 / wanted).sum()
    assert distance < stats.chi2.ppf(0.999, len(wanted) - 1)
    assert len(wanted) > 30
    assert 0.2 < made.acceptance < 0.8


TRACED = Tally()


def drawn(prompts, key, temperature=1.5, new=NEW):
    draft, sampler = (
        ef.DraftModel(nudged("small llama"), 3),
        Counting(ef.Sample(temperature), TRACED),
    )
    options = {"draft": draft, "max_new_tokens": new, "sampler": sampler, "key": key}
    return ef.generate_speculative(built("small llama"), prompts, **options)


def test_a_key_gives_a_row_the_same_text_at_any_batch_size_and_rows_differ():
    keys = jax.random.split(jax.random.key(5), 3)
    last = jax.random.clone(keys)[2:]
    every = drawn([PROMPTS[0]] * 3, keys)
    assert len({tuple(row) for row in every.tokens}) == 3
    assert_some_were_kept_and_some_not(every)
    alone = drawn(PROMPTS[:1], last)
    assert alone.tokens[0] == every.tokens[2]
    assert alone.accepted[0] == every.accepted[2]


def test_other_prompts_settings_and_keys_compile_nothing_anew():
    drawn(PROMPTS, jax.random.split(jax.random.key(0), 3))
    traced = len(TRACED)
    drawn([[3], [4] * 9, [5] * 16], jax.random.split(jax.random.key(1), 3), 0.5, 7)
    assert len(TRACED) == traced > 0
