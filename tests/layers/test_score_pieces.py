"""Scores in pieces: the same numbers, in the memory of a piece."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.layers import score_pieces
from eqxformer.layers.plain_attention import plain_attention
from tests.helpers.compare import assert_close
from tests.helpers.hot import normal

ROWS, HEADS, KV_HEADS, SEQ, KEYS = 6, 4, 2, 23, 29
HEAD = 4 * HEADS // KV_HEADS * SEQ * KEYS  # bytes of the scores of a head of keys
VALID = np.ones((ROWS, KEYS), bool)
VALID[0, :20], VALID[1, 13:], VALID[2] = False, False, False  # left, right, nothing to be seen
PIECES = {
    "everything": ROWS * KV_HEADS * HEAD,
    "some rows": 3 * KV_HEADS * HEAD,
    "a row and a half": KV_HEADS * HEAD * 3 // 2,
    "one head": HEAD,
    "some queries": HEAD // 3,
    "one query": 1,
}
MASKS = {
    "none": None,
    "padding": ef.Padding(jnp.asarray(VALID)),
    "per head": ef.PerHead(jnp.asarray(normal(9, HEADS, SEQ, KEYS) > 0)),
    "segments": ef.Segments(jnp.asarray(np.arange(SEQ) // 9), jnp.asarray(np.arange(KEYS) // 9)),
}
EXTRAS = {
    "plain": (ef.Scoring(0.4), None),
    "soft-cap, sinks, bias of heads": (
        ef.Scoring(0.4, softcap=2.0, sinks=normal(8, HEADS)),
        normal(3, HEADS, SEQ, KEYS),
    ),
    "bias of rows": (ef.Scoring(0.4), normal(3, ROWS, HEADS, SEQ, KEYS)),
}


def operands(keys_of=ROWS):
    """Queries, and keys and values of fewer heads."""
    return (
        normal(0, ROWS, HEADS, SEQ, 3),
        normal(1, keys_of, KV_HEADS, KEYS, 3),
        normal(2, keys_of, KV_HEADS, KEYS, 5),
    )


def value_and_gradients(given, mask, scoring, bias):
    """By queries, keys, values, sinks and bias, with a sine behind."""

    def bent(given, scoring, bias):
        y = plain_attention(*given, scoring=scoring, mask=mask, bias=bias)
        return jnp.sin(y).sum(), y

    wrt = (0, 1) if bias is None else (0, 1, 2)
    return jax.jit(jax.value_and_grad(bent, wrt, has_aux=True))(given, scoring, bias)


@functools.cache
def whole(extra, mask, keys_of=ROWS):
    """What `value_and_gradients` gives without pieces, made once; not to be asked for with them."""
    assert score_pieces.MANY
    return value_and_gradients(operands(keys_of), MASKS[mask], *EXTRAS[extra])


@pytest.fixture
def pieces(monkeypatch):
    """Sets the bytes of a piece, and has all scores made in pieces."""

    def of(size):
        monkeypatch.setattr(score_pieces, "MANY", 0)
        monkeypatch.setattr(score_pieces, "PIECE", size)

    return of


@pytest.mark.parametrize("size", PIECES)
@pytest.mark.parametrize(
    ("extra", "mask"),
    [
        ("plain", "none"),
        ("plain", "segments"),
        ("soft-cap, sinks, bias of heads", "padding"),
        ("bias of rows", "per head"),
    ],
)
def test_pieces_equal_the_whole_in_value_and_gradient(extra, mask, size, pieces):
    wanted = whole(extra, mask)
    pieces(PIECES[size])
    assert_close(value_and_gradients(operands(), MASKS[mask], *EXTRAS[extra]), wanted, 1e-5)


@pytest.mark.parametrize("size", PIECES)
def test_rows_may_share_their_keys(size, pieces):
    extra = "soft-cap, sinks, bias of heads"
    wanted = whole(extra, "none", keys_of=1)
    pieces(PIECES[size])
    assert_close(value_and_gradients(operands(keys_of=1), None, *EXTRAS[extra]), wanted, 1e-5)


@pytest.mark.parametrize("size", ["some rows", "one head", "some queries"])
def test_there_may_be_any_number_of_leading_axes(size, pieces):
    wanted = np.asarray(whole("bias of rows", "none")[0][1])
    pieces(PIECES[size])
    scoring, bias = EXTRAS["bias of rows"]

    def shaped(x):
        return x.reshape(2, 3, *x.shape[1:])

    @jax.jit
    def forms(*given):
        def attended(q, k, v, b):
            return plain_attention(q, k, v, scoring=scoring, bias=b)

        row = attended(*(x[4] for x in given))
        return attended(*map(shaped, given)), row, jax.vmap(attended)(*given)

    expected = (shaped(wanted), wanted[4], wanted)
    assert_close(forms(*operands(), bias), expected, 1e-6)


def test_places_in_a_cache_are_read_in_pieces(pieces):
    """Slots that are empty or ahead of a query are not seen."""
    given = operands()
    at = jnp.asarray(np.arange(SEQ) + 4)
    held = jnp.asarray(np.where(np.arange(KEYS) < SEQ + 4, np.arange(KEYS), -1))

    def attended():
        options = {"scoring": ef.Scoring(0.4), "mask": ef.Causal(), "places": (at, held)}
        return jax.jit(lambda *g: plain_attention(*g, **options))(*given)

    wanted = attended()
    pieces(HEAD // 3)
    assert_close(attended(), wanted, 1e-6)


def kept(key):
    """Of every row and head, what dropout leaves of equal scores of values of one, by query."""
    query, keys, values = (np.zeros_like(x) for x in operands())
    scoring = ef.Scoring(1.0, dropout=0.5)
    attended = jax.jit(lambda *g: plain_attention(*g, scoring=scoring, key=key))
    return np.asarray(attended(query, keys, values + 1))[..., 0].reshape(-1, SEQ)


def test_no_piece_of_queries_repeats_the_dropout_of_another(pieces):
    """Queries cut in as many pieces as do not divide them evenly."""
    for queries in (1, 4, 6, 8, 12):
        pieces(queries * HEAD // SEQ)
        rows = kept(jax.random.key(0))
        assert len(np.unique(rows, axis=0)) == ROWS * HEADS
        assert not any((rows[:, apart:] == rows[:, :-apart]).all() for apart in range(1, SEQ))
    np.testing.assert_array_equal(kept(jax.random.PRNGKey(0)), rows)


@pytest.mark.parametrize("size", ["some rows", "one head", "some queries"])
def test_dropout_differs_from_piece_to_piece_and_keeps_the_mean(size, pieces):
    """Values of one and equal scores: a result is the share of the keys that were kept, doubled."""
    pieces(PIECES[size])
    rows = kept(jax.random.key(0))
    assert len(np.unique(rows, axis=0)) == ROWS * HEADS
    assert len(np.unique(rows[0])) > 5
    np.testing.assert_allclose(rows.mean(), 1.0, atol=5 * (rows.size * KEYS) ** -0.5)


def test_derivatives_may_be_taken_forwards_and_twice(pieces):
    given = operands()
    directions = tuple(normal(i + 5, *x.shape) for i, x in enumerate(given))

    def found():
        def attended(*given):
            return plain_attention(*given, scoring=ef.Scoring(0.4))

        def slope(*given):
            return jax.grad(lambda *g: jnp.sin(attended(*g)).sum(), (0, 1, 2))(*given)

        forwards = jax.jvp(attended, given, directions)[1]
        return forwards, jax.jvp(slope, given, directions)[1]

    wanted = jax.jit(found)()
    pieces(HEAD // 3)
    assert_close(jax.jit(lambda: found())(), wanted, 1e-5)


def test_programs_for_other_devices_hold_no_pieces(pieces):
    pieces(HEAD)
    traced = jax.jit(lambda *g: plain_attention(*g, scoring=ef.Scoring(0.4))).trace(*operands())

    def loops(platform):
        return traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while")

    assert [loops(platform) for platform in ("cuda", "tpu", "cpu")] == [0, 0, 1]


def test_training_on_long_texts_takes_memory_of_their_length_alone():
    """Twice as long: 2.2 times the memory, where scores would take 4 times."""

    def needed(seq):
        shape = jax.ShapeDtypeStruct((1, 8, seq, 64), jnp.float32)

        def loss(*given):
            return plain_attention(*given, scoring=ef.Scoring(0.3), mask=ef.Causal()).sum()

        program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()
        return program.memory_analysis().temp_size_in_bytes

    short, long = needed(2048), needed(4096)
    assert long < 2.3 * short
    assert long < 4 * 8 * 4096 * 4096 / 2  # a half of the scores
