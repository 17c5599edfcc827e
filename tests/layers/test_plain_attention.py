"""Attention in blocks of queries: the same numbers, without the scores that nobody asks for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.layers import plain_attention, score_pieces
from eqxformer.layers.plain_attention import Block, blocks
from tests.helpers.compare import assert_close
from tests.helpers.hot import normal

SEQ = 300  # three blocks, the last one short
VALID = np.ones((2, SEQ), bool)
VALID[0, :140], VALID[1, 260:] = False, False  # one row padded on the left, one on the right
SEGMENTS = np.repeat(np.arange(3), 100)
MASKS = {
    "causal": ef.Causal(),
    "causal, padding": ef.Causal() & ef.Padding(jnp.asarray(VALID)),
    "causal, segments": ef.Causal() & ef.Segments(jnp.asarray(SEGMENTS)),
    "causal, window": ef.Causal() & ef.Window(40, 0),
    "causal, wide window": ef.Causal() & ef.Window(200, 5),
    "window on both sides": ef.Window(20, 80),
    "two windows, padding": ef.Window(20, 80) & ef.Window(140, 3) & ef.Padding(jnp.asarray(VALID)),
    "causal, per head": ef.Causal()
    & ef.PerHead(jnp.asarray(np.asarray(normal(9, 4, SEQ, SEQ)) > 0)),
}
SCORINGS = {
    "plain": ef.Scoring(0.4),
    "soft-cap, sinks": ef.Scoring(0.4, softcap=2.0, sinks=normal(8, 4)),
}


def arguments(seq, bias=False):
    """Queries, keys and values of four heads that share two, and a bias."""
    query, keys, values = normal(0, 2, 4, seq, 3), normal(1, 2, 2, seq, 3), normal(2, 2, 2, seq, 5)
    return query, keys, values, normal(3, 4, seq, seq) if bias else None


def whole(mask, seq, keys):
    """All queries and keys as one block."""
    return [Block(slice(0, seq), slice(0, keys))]


def value_and_gradients(given, mask, scoring):
    """Of the plain backend, with a sine behind it."""

    def bent(given):
        query, keys, values, bias = given
        options = {"scoring": scoring, "mask": mask, "bias": bias, "backend": "plain"}
        y = ef.attend(query, keys, values, **options)
        return jnp.sin(y).sum(), y

    return jax.jit(jax.value_and_grad(bent, has_aux=True))(given)


@pytest.mark.parametrize(
    ("mask", "scoring"),
    [
        *((mask, "soft-cap, sinks") for mask in MASKS),
        ("causal", "plain"),
        ("causal, padding", "plain"),
    ],
)
def test_blocks_equal_one_block_in_value_and_gradient(mask, scoring, monkeypatch):
    given, mask, scoring = arguments(SEQ, scoring != "plain"), MASKS[mask], SCORINGS[scoring]
    assert len(blocks(mask, SEQ, SEQ)) == 3
    found = value_and_gradients(given, mask, scoring)
    monkeypatch.setattr(plain_attention, "blocks", whole)
    assert_close(found, value_and_gradients(given, mask, scoring), 1e-5)


@pytest.mark.parametrize("seq", [128, 129, 300, 512, 513, 1000, 8192])
@pytest.mark.parametrize("left", [0, 3, 127, 128, 200, None])
@pytest.mark.parametrize("right", [0, 5, 64, None])
def test_blocks_hold_every_query_once_and_every_key_that_it_may_see(seq, left, right):
    window = ef.Window(seq if left is None else left, seq if right is None else right)
    found = blocks(window, seq, seq)
    assert [i for b in found for i in range(b.query.start, b.query.stop)] == list(range(seq))
    assert len(found) <= plain_attention.MOST_BLOCKS
    for block in found:
        first, last = block.query.start, block.query.stop - 1
        assert block.keys.start <= max(first - window.left, 0)
        assert block.keys.stop >= min(last + window.right, seq - 1) + 1
        assert 0 <= block.keys.start < block.keys.stop <= seq


@pytest.mark.parametrize("mask", [None, ef.Full(), ef.Prefix(3), ef.Window(400, 400)], ids=str)
def test_what_may_be_seen_from_everywhere_is_one_block(mask):
    assert blocks(mask, 300, 300) == whole(mask, 300, 300)


class Ahead(ef.Causal):
    """A query sees two hundred keys ahead."""

    def allows(self, queries, keys):
        return keys[..., None, None, :] <= queries[..., None, :, None] + 200


class Outside(ef.Window):
    """A query sees what is not in its window."""

    def allows(self, queries, keys):
        return ~super().allows(queries, keys)


@pytest.mark.parametrize("mask", [Ahead(), Outside(20, 10)], ids=["Causal", "Window"])
def test_a_subclass_may_see_from_everywhere(mask):
    assert blocks(mask, SEQ, SEQ) == whole(mask, SEQ, SEQ)


def test_other_keys_than_queries_are_one_block():
    """Their places say nothing about which key is ahead."""
    assert blocks(ef.Causal(), 300, 400) == whole(None, 300, 400)


def numbers_of(program):
    """The largest temporary memory of a compiled program, in numbers of float32."""
    return program.memory_analysis().temp_size_in_bytes / 4


def test_training_keeps_five_eighths_of_the_scores_of_a_causal_model(monkeypatch):
    seq, heads, size = 1024, 4, 8
    shape = jax.ShapeDtypeStruct((1, heads, seq, size), jnp.float32)

    def deep(query, keys, values):
        for _ in range(3):
            query = ef.attend(query, keys, values, scoring=ef.Scoring(0.3), mask=ef.Causal())
        return query.sum()

    def kept():
        return numbers_of(jax.jit(jax.grad(deep)).lower(shape, shape, shape).compile())

    in_blocks = kept()
    monkeypatch.setattr(plain_attention, "blocks", whole)
    jax.clear_caches()
    assert in_blocks < 0.7 * kept()


def test_a_window_costs_as_much_memory_as_its_length(monkeypatch):
    monkeypatch.setattr(score_pieces, "MANY", 2**40)
    shape = jax.ShapeDtypeStruct((1, 2, 4096, 8), jnp.float32)

    def attended(mask):
        return (
            jax.jit(lambda q, k, v: ef.attend(q, k, v, scoring=ef.Scoring(0.3), mask=mask))
            .lower(shape, shape, shape)
            .compile()
        )

    narrow, causal = (numbers_of(attended(m)) for m in (ef.Window(64, 0), ef.Causal()))
    assert narrow < causal / 2


def test_dropout_differs_from_block_to_block_and_keeps_the_mean():
    """Values of one: a result is the sum of the weights that were kept."""
    query = keys = np.zeros((200, 1, 256, 1), np.float32)
    values, scoring = np.ones((200, 1, 256, 1), np.float32), ef.Scoring(1.0, dropout=0.5)
    mask = ef.Window(0, 0)  # each query sees itself: kept, and doubled, or dropped
    run = jax.jit(lambda *g: ef.attend(*g, scoring=scoring, mask=mask, key=jax.random.key(0)))
    y = np.asarray(run(query, keys, values))[:, 0, :, 0]
    assert set(np.unique(y)) == {0.0, 2.0}
    np.testing.assert_allclose(y.mean(), 1.0, atol=5 * 200**-0.5 * 256**-0.5)
    assert (y[:, :128] != y[:, 128:]).any()


def test_it_can_be_differentiated_forwards():
    given = arguments(SEQ)[:3]
    directions = tuple(normal(i, *a.shape) for i, a in enumerate(given))

    def attended(*given):
        return ef.attend(*given, scoring=ef.Scoring(0.4), mask=ef.Causal())

    @jax.jit
    def both():
        _, forward = jax.jvp(attended, given, directions)
        back = jax.vjp(attended, *given)[1](forward)
        paired = sum((a * b).sum() for a, b in zip(back, directions, strict=True))
        return paired, jnp.square(forward).sum()

    np.testing.assert_allclose(*both(), rtol=1e-4)
