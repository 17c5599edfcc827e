"""Tables by id and by position: right rows, and never a wrong one in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers.compare import assert_agrees
from tests.helpers.hot import drawn, normal

IDS = np.array([[3, 0, 9], [9, 9, 1]])


@pytest.fixture(scope="module")
def table():
    return drawn(ef.Embedding.Config(), 10, 4)


@pytest.fixture(scope="module")
def learned():
    return drawn(ef.LearnedPositions.Config(length=6, offset=2), 4)


def test_an_embedding_is_the_row_of_its_id_in_value_and_gradient(table):
    twin = lambda part, x: np.array([[part.weight[i] for i in row] for row in IDS])  # noqa: E731
    assert_agrees(lambda part, x: part(jnp.asarray(IDS)), twin, table, normal(0, 1))


def test_a_tied_output_scores_every_token(table):
    x = normal(1, 2, 3, 4)
    twin = lambda part, x: np.einsum("bsd,vd->bsv", x, part.weight)  # noqa: E731
    assert_agrees(lambda part, x: part.attend(x), twin, table, x)


@pytest.mark.parametrize(
    ("wrong", "more"), [([10], "."), ([-1], "."), ([2, 11, -3], " and 1 more.")]
)
def test_ids_outside_the_vocabulary_are_an_error(table, wrong, more):
    first = next(i for i in wrong if not 0 <= i < 10)
    message = f"Every token id must be at least 0 and below 10; got {first}{more}"
    with pytest.raises(ValueError, match=f"^{message}$".replace(".", "[.]")):
        table(jnp.array(wrong))


def test_ids_outside_the_vocabulary_are_nan_under_jit_and_alone_so(table):
    ids = np.array([0, 9, 10, -1, 99, -10, -11, 2**31 - 1, -(2**31)], np.int32)
    expected = table(jnp.asarray(ids[:2]))
    for run in (jax.jit(table.__call__), jax.vmap(table), jax.jit(jax.vmap(table))):
        rows = np.asarray(run(jnp.asarray(ids)))
        assert (rows[:2] == expected).all()
        assert np.isnan(rows[2:]).all()


def test_an_id_of_a_small_integer_type_works_though_the_vocabulary_does_not_fit_it():
    table, ids = drawn(ef.Embedding.Config(), 300, 2), np.array([3, 127, -1], np.int8)
    expected = np.asarray(table.weight)[[3, 127]]
    assert (np.asarray(table(jnp.asarray(ids[:2]))) == expected).all()
    assert np.isnan(np.asarray(jax.jit(table.__call__)(ids))[2]).all()


def test_learned_positions_are_rows_counted_from_the_offset(learned):
    positions = jnp.array([[0, 5], [2, 2]])
    assert (learned(positions) == learned.weight[positions + 2]).all()
    assert learned.weight.shape == (8, 4)


@pytest.mark.parametrize("wrong", [6, -1, -2, 1000])
def test_positions_outside_the_table_are_an_error_and_nan_under_jit(learned, wrong):
    positions = jnp.array([0, wrong])
    message = f"Every position must be at least 0 and below 6; got {wrong}[.]"
    with pytest.raises(ValueError, match=message):
        learned(positions)
    rows = jax.jit(learned.__call__)(positions)
    assert (rows[0] == learned.weight[2]).all()
    assert np.isnan(rows[1]).all()


@pytest.mark.parametrize("options", [{"length": 0}, {"length": 3, "offset": -1}])
def test_impossible_tables_of_positions_are_refused(options):
    with pytest.raises(ValueError, match="`length` must be positive and `offset` not negative"):
        ef.LearnedPositions.Config(**options)


@pytest.mark.parametrize("dim", [8, 7, 1])
@pytest.mark.parametrize("layout", ["interleaved", "halves"])
def test_sinusoids_equal_their_formula_in_both_layouts_and_odd_widths(layout, dim):
    config = ef.Sinusoids.Config(layout=layout, base=100.0, offset=2)
    positions = np.array([[0, 1, 2], [50, 7, 300]])
    got = jax.jit(drawn(config, dim).__call__)(positions)
    expected = np.zeros((2, 3, dim))
    for i in range(dim):
        pair, wave = divmod(i, 2)
        angles = (positions + 2) / 100.0 ** (2 * pair / dim)
        column = i if layout == "interleaved" else pair + wave * ((dim + 1) // 2)
        expected[..., column] = np.cos(angles) if wave else np.sin(angles)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=300 * 2.0**-23)


def test_sinusoids_are_as_exact_at_far_places_as_at_near_ones():
    """Tables that were computed in float64, such as Marian's, are met to a few roundings."""
    places = np.array([0, 1, 10, 512, 1023, 8191, 16383])
    angles = places[:, None] / 10_000.0 ** (np.arange(0, 512, 2) / 512)
    exact = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    got = jax.jit(ef.Sinusoids(512, layout="halves").__call__)(jnp.asarray(places))
    np.testing.assert_allclose(got, exact, rtol=0, atol=8 * 2.0**-23)


@pytest.mark.parametrize("layout", ["interleaved", "halves"])
@pytest.mark.parametrize("dim", [4, 10])
def test_a_closed_spread_of_frequencies_ends_at_one_over_the_base(layout, dim):
    """tensor2tensor's and fairseq's: evenly spaced logarithms, both ends included."""
    positions = np.array([0, 1, 7, 300])
    config = ef.Sinusoids.Config(layout=layout, base=100.0, offset=2, spread="closed")
    got = jax.jit(drawn(config, dim).__call__)(positions)
    angles = (positions + 2)[:, None] * np.geomspace(1.0, 0.01, dim // 2)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    if layout == "interleaved":
        expected = expected.reshape(4, 2, -1).swapaxes(1, 2).reshape(4, dim)
    np.testing.assert_allclose(got, expected, atol=300 * 2.0**-23)


@pytest.mark.parametrize("dim", [2, 7])
def test_a_closed_spread_of_an_odd_or_single_pair_width_is_refused(dim):
    with pytest.raises(ValueError, match=f"needs an even width of at least 4; got {dim}."):
        ef.Sinusoids(dim, spread="closed")


def test_sinusoids_start_with_sines_of_zero_and_cosines_of_zero():
    waves = ef.Sinusoids(6)(jnp.arange(1))[0]
    assert waves.tolist() == [0.0, 1.0] * 3
    halves = ef.Sinusoids(6, layout="halves")(jnp.arange(1))[0]
    assert halves.tolist() == [0.0] * 3 + [1.0] * 3


def test_positions_take_one_sequence_or_batches(learned):
    positions = jnp.array([[[0, 1], [1, 4]]])
    for part in (learned, ef.Sinusoids(4)):

        @jax.jit
        def forms(positions, part=part):
            each = part(positions[0]), part(positions[0, 0]), part(positions[:, :0])
            return part(positions), jax.vmap(jax.vmap(part))(positions), *each

        whole, mapped, one, none, empty = map(np.asarray, forms(positions))
        assert whole.shape == (1, 2, 2, 4)
        assert empty.shape == (1, 0, 2, 4)
        for found, expected in [(mapped, whole), (one, whole[0]), (none, whole[0, 0])]:
            np.testing.assert_array_equal(found, expected)


def test_an_embedding_of_no_ids_is_empty(table):
    assert table(jnp.zeros((0, 3), jnp.int32)).shape == (0, 3, 4)
