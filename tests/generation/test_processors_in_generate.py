"""Processors in the loop of `generate`: they see each row's tokens, and mistakes are told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.generation import twins
from tests.generation.small import small
from tests.helpers import twins as plain_twins
from tests.helpers.models import VOCAB, tokens

NEW = 4


def _by_hand(name, text, prompt):
    """Greedily, from the logits of the model's twin through the loops, a token at a time."""
    plain, text = plain_twins.plain(small(name)), list(text)
    for _ in range(NEW):
        if name == "t5":
            logits = plain_twins.encoder_decoder(plain, np.array(prompt), np.array(text))
        else:
            logits = plain_twins.decoder(plain, np.array(text))
        now = twins.repetition(logits[-1], text, 0, 3.0)
        text.append(int(np.argmax(twins.no_repeat(now, text, 0, 1))))
    return text[-NEW:]


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_generate_hands_its_processors_the_tokens_of_each_row(name):
    ids = np.array([[1, 2, 3, 4], [-1, -1, 5, 6]]) if name == "llama" else np.array(tokens(2, 4))
    texts = [row[row >= 0].tolist() for row in ids] if name == "llama" else [[2], [2]]
    made = ef.generate(
        small(name),
        jnp.asarray(ids),
        max_new_tokens=NEW,
        valid=jnp.asarray(ids >= 0),
        sampler=ef.RepetitionPenalty(3.0) | ef.NoRepeatNGram(1) | ef.Greedy(),
        **({} if name == "llama" else {"start": 2}),
    )
    pairs = zip(texts, ids, strict=True)
    assert made.tolist() == [_by_hand(name, text, prompt) for text, prompt in pairs]


def test_generate_knows_its_first_and_its_last_step():
    made = ef.generate(
        small("gpt"),
        tokens(2, 4),
        max_new_tokens=NEW,
        sampler=ef.Suppress((0, 5)) | ef.Force({0: 5, -1: 0}),
        key=jax.random.key(0),
    )
    made = np.asarray(made)
    assert (made[:, 0] == 5).all()
    assert (made[:, -1] == 0).all()
    assert not np.isin(made[:, 1:-1], [0, 5]).any()


def test_generate_refuses_ids_that_the_vocabulary_lacks_before_anything_runs():
    with pytest.raises(ValueError, match=f"ids of `Suppress` must be below {VOCAB}; got {VOCAB}"):
        ef.generate(
            small("gpt"),
            tokens(1, 3),
            max_new_tokens=2,
            sampler=ef.TopK(3) | ef.Suppress((VOCAB,)) | ef.Greedy(),
        )


def test_generate_says_which_row_has_nothing_left_to_choose():
    prompts = jnp.array([[1, 1, 1], [2, 3, 4]])
    everything = ef.Process(_nothing_after_three_ones)
    with pytest.raises(ValueError, match="Row 0 has no token to choose"):
        ef.generate(small("gpt"), prompts, max_new_tokens=2, sampler=everything | ef.Greedy())


def _nothing_after_three_ones(logits, seen):
    ones = (seen.tokens[:, :3] == 1).all(-1)
    return jnp.where(ones[:, None], -jnp.inf, logits)
