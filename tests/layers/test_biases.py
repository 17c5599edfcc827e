"""Biases by distance: ALiBi's slopes and T5's buckets against slow loops."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.layers.biases import alibi_slopes, distance_buckets
from tests.helpers import reference
from tests.helpers.compare import assert_agrees
from tests.helpers.hot import drawn, normal
from tests.helpers.models import block, decoder, extend, filled, logits, tokens

PUBLISHED = {  # Press et al. 2021, and the slopes in BLOOM's 112 heads begin the same way
    1: [2**-8],
    2: [2**-4, 2**-8],
    3: [2**-4, 2**-8, 2**-2],
    6: [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3],
    8: [2**-i for i in range(1, 9)],
    12: [2**-i for i in range(1, 9)] + [2 ** -(i + 0.5) for i in range(4)],
}


def grid(part, queries, keys):
    """[heads, seq, keys], number by number."""
    heads = part.heads if isinstance(part, ef.ALiBi) else part.weight.shape[1]
    cells = [
        [[reference.position_bias(part, h, q, k) for k in keys] for q in queries]
        for h in range(heads)
    ]
    return np.array(cells)


@pytest.mark.parametrize("heads", PUBLISHED)
def test_alibi_slopes_are_the_published_ones(heads):
    assert alibi_slopes(heads).tolist() == pytest.approx(PUBLISHED[heads])


@pytest.mark.parametrize("heads", range(1, 21))
def test_alibi_slopes_are_positive_and_no_two_heads_have_the_same(heads):
    slopes = alibi_slopes(heads)
    assert slopes.tolist() == pytest.approx(reference.alibi_slopes(heads))
    assert slopes.shape == (heads,)
    assert len(set(slopes)) == heads
    assert ((slopes > 0) & (slopes < 1)).all()


def test_alibi_falls_with_the_distance_on_both_sides():
    queries, keys = np.array([0, 5, 2]), np.array([4, 0, 5, 9])
    got = ef.ALiBi(3)(jnp.asarray(queries), jnp.asarray(keys))
    np.testing.assert_allclose(got, grid(ef.ALiBi(3), queries, keys), rtol=1e-6)
    halved = ef.ALiBi(3, scale=0.5)
    np.testing.assert_array_equal(halved(jnp.asarray(queries), jnp.asarray(keys)), got / 2)
    assert got[0, 1].tolist() == [-1 / 16, -5 / 16, 0.0, -4 / 16]


@pytest.mark.parametrize("compiled", [False, True])
def test_falcons_alibi_rounds_slopes_places_and_products_to_bfloat16(compiled):
    queries, keys = np.array([0, 300]), np.array([3, 129, 257, 1001])
    part = ef.ALiBi(3, scale=0.25, rounding="bfloat16")
    got = (jax.jit(part.__call__) if compiled else part)(jnp.asarray(queries), jnp.asarray(keys))
    assert got.tolist() == grid(part, queries.tolist(), keys.tolist()).tolist()
    assert got[0, 0].tolist() == [0.25 * 3 / 16, 0.25 * 129 / 16, 0.25 * 256 / 16, 0.25 * 1000 / 16]
    slope = ef.ALiBi(12, rounding="bfloat16")(jnp.array([0]), jnp.array([1]))[8, 0, 0]
    assert float(slope) == 181 / 256  # of the square root of a half, 181.02 / 256


@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (6, 7), (64, 1000)])
def test_t5_buckets_equal_a_slow_loop_at_every_distance(direction, buckets, max_distance):
    config = ef.RelativeBias.Config(buckets, max_distance, direction)
    part = drawn(config, 2)
    distances = np.arange(-1100, 1100)
    expected = [reference.t5_bucket(int(d), buckets, max_distance, direction) for d in distances]
    assert part.bucket(jnp.asarray(distances)).tolist() == expected
    assert set(expected) <= set(range(buckets))


def test_t5_buckets_are_the_papers_where_they_change():
    """32 buckets up to 128: single ones up to 15 looking back, then at these distances."""
    changes = np.flatnonzero(np.diff(distance_buckets(32, 128))) + 1
    assert changes.tolist() == [
        *range(1, 17),
        19,
        21,
        24,
        27,
        31,
        35,
        40,
        46,
        52,
        59,
        67,
        77,
        87,
        99,
        113,
    ]


@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
def test_a_relative_bias_equals_its_table_in_value_and_gradient(direction):
    config = ef.RelativeBias.Config(8, 20, direction)
    part = drawn(config, 3)
    queries, keys = np.array([3, 30, 0]), np.array([0, 2, 3, 4, 40])
    assert_agrees(
        lambda part: part(jnp.asarray(queries), jnp.asarray(keys)),
        lambda part: grid(part, queries.tolist(), keys.tolist()),
        part,
    )


@pytest.mark.parametrize("config", [ef.ALiBi.Config(), ef.RelativeBias.Config()])
def test_biases_depend_only_on_distances_and_take_places_per_row(config):
    part, places = drawn(config, 4), np.arange(5)
    biases = eqx.filter_jit(part.__call__)
    one = np.asarray(biases(places, places))
    assert one.shape == (4, 5, 5)
    np.testing.assert_array_equal(biases(places + 1000, places + 1000), one)
    rows = biases(np.stack([places, places + 7]), np.stack([places, places + 7]))
    np.testing.assert_array_equal(rows, np.stack([one, one]))
    assert eqx.filter_eval_shape(part, places[:0], places).shape == (4, 0, 5)


@pytest.mark.usefixtures("unchecked")
def test_an_explicit_bias_is_what_it_holds_and_only_for_its_shape():
    values = normal(0, 2, 3, 4)
    part = ef.ExplicitBias(values)
    assert (part(jnp.arange(3), jnp.arange(4)) == values).all()
    message = r"`ExplicitBias.values` is for \(3, 4\) queries and keys; this call has \(3, 5\)."
    with pytest.raises(ValueError, match=message):
        part(jnp.arange(3), jnp.arange(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": 2}, "`buckets` must be even and at least 4 for a bidirectional bias; got 2."),
        ({"buckets": 7}, "`buckets` must be even and at least 4 for a bidirectional bias; got 7."),
        (
            {"buckets": 1, "direction": "causal"},
            "`buckets` must be at least 2 for a causal bias; got 1.",
        ),
        (
            {"buckets": 32, "max_distance": 8},
            "`max_distance` must be above 8, the distances with a bucket of their own; got 8.",
        ),
    ],
)
def test_impossible_buckets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ef.RelativeBias.Config(**options)


def test_a_bias_that_is_rounded_at_its_places_does_not_count_padding():
    # Twelve heads, since bfloat16 holds the slopes of fewer exactly, and their products too.
    bias = ef.ALiBi.Config(rounding="bfloat16")
    attention = drawn(ef.Attention.Config(heads=12, head_dim=2, bias=bias), 12)
    x = normal(1, 6, 12)
    padded = np.concatenate([np.zeros((5, 12), np.float32), x])
    valid = ef.Padding(jnp.asarray(np.arange(11) >= 5))

    @eqx.filter_jit
    def run(x, mask):
        return attention(x, mask=mask), attention.weights(x, mask=mask)

    alone, alone_weights = run(x, ef.Causal())
    got, weights = run(padded, ef.Causal() & valid)
    np.testing.assert_allclose(got[5:], alone, atol=1e-6)
    np.testing.assert_allclose(weights[:, 5:, 5:], alone_weights, atol=1e-6)


def test_a_bias_of_places_goes_by_the_positions_that_are_given():
    """As documents packed in a row have them: each begins at 0."""
    config = ef.Attention.Config(heads=2, bias=ef.ALiBi.Config(rounding="bfloat16"))
    part, x = drawn(config, 8), normal(0, 1, 6, 8)
    run = jax.jit(lambda positions: part(x, mask=ef.Causal(), positions=positions))
    first = np.asarray(run(None))
    np.testing.assert_array_equal(run(np.arange(6)), first)
    late = np.asarray(run(np.arange(6) + 1001))  # rounded to steps of 8
    assert np.abs(late - first).max() > 1e-3


def test_a_bias_of_places_is_the_same_with_a_cache():
    bias = ef.ALiBi.Config(rounding="bfloat16")
    made, ids = filled(decoder(block({"bias": bias}))), np.asarray(tokens(2, 7))
    cache, found = made.init_cache((2,), 9), []
    for first, last in ((0, 3), (3, 4), (4, 7)):
        out, cache = extend(made, ids[:, first:last], cache)
        found.append(np.asarray(out))
    np.testing.assert_allclose(np.concatenate(found, axis=1), logits(made, ids), atol=1e-5)


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_a_bias_that_counts_places_where_its_config_does_not_is_refused(told, shared):
    """A model asks the config whether it takes positions, and the computation asks the bias."""

    class Own(ef.PositionBias):
        class Config(ef.PositionBias.Config):
            @property
            def counts_places(self):
                return told

            def build(self, heads, *, key):
                return Own()

        @property
        def counts_places(self):
            return not told

        def __call__(self, queries, keys):
            return jnp.zeros((1, queries.shape[-1], keys.shape[-1]))

    own = Own.Config()
    config = decoder(block({}), bias=own) if shared else decoder(block({"bias": own}))
    message = (
        f"`counts_places` of Own must be that of its Config; got {not told} of the part and {told} "
        "of the Config. Say it in the Config alone"
    )
    with pytest.raises(ValueError, match=message):
        ef.shapes(config)
