"""Reading a prompt in any chunks, on either side of its padding, changes no logits."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
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


@eqx.filter_jit
def extend(model, tokens, state):
    """The logits behind one more token of every row."""
    options = {} if state.source is None else {"source_mask": state.source}
    logits, cache = model.extend(tokens, state.cache, **options)
    return logits[:, 0], eqx.tree_at(lambda s: s.cache, state, cache)


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
        logits = state.logits
        for step in range(STEPS + 1):
            for row, length in enumerate(LENGTHS):
                close(np.asarray(logits[row]), expected[row][length - 1 + step])
            if step < STEPS:
                newest = jnp.full((len(LENGTHS), 1), int(more[step]), jnp.int32)
                logits, state = extend(model, newest, state)


def reader(name):
    """A golden model and the vocabulary of what it writes."""
    model = ef.from_pretrained(GOLDEN / name)
    config = model.config
    return model, (config.decoder if isinstance(model, ef.EncoderDecoder) else config).vocab
