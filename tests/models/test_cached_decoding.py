"""A cache changes no logits: for any family, chunking and side of padding."""

import functools
import itertools

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers.models import (
    DECODERS,
    VOCAB,
    block,
    close,
    decoder,
    extend,
    filled,
    logits,
    model,
    tokens,
)

ROWS, SEQ, CHUNK, SLOTS = 3, 11, 5, 11
EVERY = pytest.mark.parametrize("name", DECODERS)


def _uncached(name, texts):
    """The logits of texts of several lengths, padded on the right."""
    ids, valid = np.zeros((ROWS, SEQ), int), np.zeros((ROWS, SEQ), bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)], valid[row, : len(text)] = text, True
    return np.asarray(logits(model(name), jnp.asarray(ids), mask=ef.Padding(jnp.asarray(valid))))


def _cached(name, chunks):
    """The logits of every row's tokens, given as chunks of rows with padding anywhere as -1."""
    cache, found = model(name).init_cache((ROWS,), SLOTS), [[] for _ in range(ROWS)]
    for ids in chunks:
        valid = ids >= 0
        mask = ef.Padding(jnp.asarray(valid)) if ids.shape[1] > 1 else None
        out, cache = extend(model(name), jnp.asarray(ids), cache, mask=mask)
        for row in range(ROWS):
            found[row].append(np.asarray(out[row])[valid[row]])
    return [np.concatenate(row) for row in found], cache


def _texts(chunks):
    return [np.concatenate([ids[row][ids[row] >= 0] for ids in chunks]) for row in range(ROWS)]


def _ragged():
    """Prompts of 5, 3 and 2 tokens, padded on either side; a chunk with gaps; single tokens."""
    first = np.array([[1, 2, 3, 4, 5], [6, 7, 8, -1, -1], [-1, -1, -1, 9, 10]])
    second = np.array([[3, -1, 4, -1, 5], [-1, -1, -1, -1, -1], [11, 12, 0, 1, 2]])
    return [first, second, np.array([[7], [8], [9]]), np.array([[2], [1], [0]])]


@EVERY
def test_ragged_chunks_give_the_logits_of_each_row_alone(name):
    found, cache = _cached(name, _ragged())
    texts = _texts(_ragged())
    np.testing.assert_array_equal(cache.length, [len(text) for text in texts])
    expected = _uncached(name, texts)
    for row, text in enumerate(texts):
        close(found[row], expected[row, : len(text)])


@EVERY
@pytest.mark.parametrize("sizes", [(1,) * SEQ, (5, 1, 5), (1, 5, 5), (5, 5, 1)], ids=str)
def test_any_chunking_gives_the_same_logits(name, sizes):
    ids = np.asarray(tokens(ROWS, SEQ))
    ends = np.cumsum((0, *sizes))
    chunks = [ids[:, a:b] for a, b in itertools.pairwise(ends)]
    close(np.stack(_cached(name, chunks)[0]), _uncached(name, ids))


@pytest.mark.parametrize("name", ["gpt", "gemma"])
def test_any_leading_axes_of_a_cache_give_the_same(name):
    ids = tokens(2, 1, 3)
    built = model(name)
    flat, _ = extend(built, ids[:, 0], built.init_cache((2,), 4))
    nested, cache = extend(built, ids, built.init_cache((2, 1), 4))
    single, _ = extend(built, ids[1, 0], built.init_cache((), 4))
    assert cache.length.shape == (2, 1)
    close(nested[:, 0], flat)
    close(single, flat[1])


def test_no_tokens_leave_the_cache_as_it_is():
    built = model("gemma")
    _, cache = extend(built, tokens(2, 3), built.init_cache((2,), 4))
    out, after = extend(built, jnp.zeros((2, 0), jnp.int32), cache)
    assert out.shape == (2, 0, VOCAB)
    assert eqx.tree_equal(after, cache)


@functools.cache
def _windowed():
    """A block that sees a window alone, and one that sees everything."""
    return filled(decoder(block({"window": 3}), block({})))


def test_more_tokens_than_slots_are_an_error_or_nan_in_their_own_row():
    built, ids = _windowed(), tokens(2, 3)
    cache = built.init_cache((2,), 4)
    with pytest.raises(ValueError, match=r"cache has 4 slots and would have to hold 5"):
        built.extend(tokens(2, 5), cache)
    valid = jnp.array([[True, True, True], [True, False, False]])
    _, cache = extend(built, ids, cache, mask=ef.Padding(valid))
    out, cache = extend(built, ids[:, :2], cache)
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()


def test_a_window_has_no_last_slot_but_a_full_cache_of_the_same_model_has():
    built = _windowed()
    with pytest.raises(ValueError, match="cache has 4 slots"):
        built.extend(tokens(2, 5), built.init_cache((2,), 4))
    windows = ef.rebuild(built, built.config.edit("blocks.*.attention", window=3))
    cache = windows.init_cache((2,), 4)
    for step in range(4):
        out, cache = extend(windows, tokens(2, 3, seed=step), cache)
    assert np.isfinite(out).all()
    assert np.asarray(cache.length).tolist() == [12, 12]


def test_a_prefix_may_look_ahead_within_the_chunk_it_is_in():
    built, ids = model("gpt"), tokens(2, 6)
    prefix = ef.Prefix(jnp.array([4, 4]))
    first, cache = extend(built, ids[:, :4], built.init_cache((2,), 6), mask=prefix)
    rest, _ = extend(built, ids[:, 4:], cache, mask=prefix)
    close(jnp.concatenate([first, rest], axis=1), logits(built, ids, mask=prefix))


@pytest.mark.parametrize(
    "mask", [ef.Segments(jnp.zeros((2, 3), int)), ef.Explicit(jnp.ones((2, 3, 3), bool))]
)
def test_a_mask_over_the_keys_of_one_call_is_refused_with_a_cache(mask):
    built = model("gpt")
    with pytest.raises(NotImplementedError, match="describes the keys of one call"):
        built.extend(tokens(2, 3), built.init_cache((2,), 6), mask=mask)


@pytest.mark.parametrize("slots", [0, -1])
def test_a_cache_without_slots_is_refused(slots):
    with pytest.raises(ValueError, match=f"`slots` must be positive; got {slots}"):
        model("gpt").init_cache((1,), slots)
