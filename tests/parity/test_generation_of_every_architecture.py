"""Reading a prompt in any chunks, on either side of its padding, changes no logits."""

import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.generation.prefill import _read_over
from eqxformer.generation.state import copied
from tests.helpers.writers import (
    GOLDEN,
    LENGTHS,
    WRITERS,
    logits_without_cache,
    padded,
    sources,
    texts,
)

STEPS = 3


def with_one_more(model, token, state):
    """The state with a token of every row read, by the program that reads prompts one by one."""
    newest = jnp.full((len(LENGTHS), 1), int(token), jnp.int32)
    return _read_over(model, copied(state), newest, jnp.ones(newest.shape, bool))


def close(found, expected):
    bound = 1e-4 * max(1.0, np.abs(expected).max())  # float32, a few layers of hot weights
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


# LongRoPE turns by how long a text is so far: in chunks, the first of them are still short texts.
CASES = [(n, c) for n in WRITERS for c in (1, 3, None) if n != "phi3" or c is None]


@pytest.mark.parametrize(("name", "chunk"), CASES)
def test_logits_are_those_without_a_cache_for_any_chunks_and_padding(name, chunk):
    model, vocab = reader(name)
    begin, more = texts(vocab), np.asarray(texts(vocab, seed=2)[2])[:STEPS]
    whole = [[*row, *map(int, more)] for row in begin]
    if isinstance(model, ef.EncoderDecoder):
        given, plain = sources(model)
        states = [ef.prefill(model, given, start=begin, slots=16, chunk=chunk)]
        if isinstance(given, list):
            ids, valid = padded(given, "left")
            options = {"start": begin, "slots": 16, "chunk": chunk}
            states.append(ef.prefill(model, ids, valid=valid, **options))
    else:
        plain, states = (None, None), []
        for side in ("left", "right"):
            ids, valid = padded(begin, side)
            states.append(ef.prefill(model, ids, valid=valid, slots=16, chunk=chunk))
    expected = logits_without_cache(model, plain, whole)
    for state in states:
        for step in range(STEPS + 1):
            for row, length in enumerate(LENGTHS):
                close(np.asarray(state.logits[row]), expected[row][length - 1 + step])
            if step < STEPS:
                state = with_one_more(model, more[step], state)


def reader(name):
    """A golden model and the vocabulary of what it writes."""
    model = ef.from_pretrained(GOLDEN / name)
    config = model.config
    return model, (config.decoder if isinstance(model, ef.EncoderDecoder) else config).vocab
