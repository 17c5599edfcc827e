"""Rotary positions: turns, layouts, scalings by their published formulas, long texts."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eqxformer as ef
from tests.helpers import reference
from tests.helpers.compare import FLOAT32_TABLES, assert_agrees, rounding_error
from tests.helpers.hot import normal

SIZE = 16
SCALINGS = {
    "none": None,
    "linear": ef.LinearScaling(factor=4.0),
    "dynamic NTK": ef.DynamicNTK(factor=3.0, original_length=20),
    "Llama 3": ef.Llama3Scaling(factor=8.0, original_length=40, high_frequency_factor=3.0),
    "YaRN": ef.YaRN(factor=4.0, original_length=64, fast=4.0, slow=0.5),
    "YaRN, not rounded": ef.YaRN(factor=4.0, original_length=64, fast=4.0, slow=0.5, rounded=False),
    "YaRN, given magnitude": ef.YaRN(factor=4.0, original_length=64, attention_factor=1.5),
    "LongRoPE": ef.LongRoPE(
        short=tuple(1 + i / 8 for i in range(8)),
        long=tuple(2.0 + i for i in range(8)),
        original_length=20,
        factor=8.0,
    ),
}
SHORT, LONG = np.array([[0, 3, 7, 19]]), np.array([[0, 5, 20, 300]])


@eqx.filter_jit
def tables(scaling, positions):
    return ef.Rotary(base=100.0, scaling=scaling).tables(SIZE, positions)


@eqx.filter_jit
def turned(rotary, x, positions):
    return rotary(x, positions)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rotary_equals_turning_pair_by_pair_in_value_and_gradient(layout, fraction):
    rotary = ef.Rotary(base=100.0, fraction=fraction, layout=layout)
    positions = jnp.array([4, 0, 11])
    assert_agrees(
        lambda x: rotary(x, positions),
        lambda x: reference.rotate(rotary, x, positions),
        normal(0, 2, 3, 8),
        tolerance=FLOAT32_TABLES,
    )


@pytest.mark.parametrize("positions", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("name", SCALINGS)
def test_scalings_follow_their_published_formulas(name, positions):
    """Up to position 300, where an angle in float32 is off by 300 * 2^-24."""
    scaling = SCALINGS[name]
    cos, sin = tables(scaling, positions)
    speeds = reference.frequencies(scaling, 100.0, SIZE, positions.max() + 1)
    angles = positions[..., None] * np.array(speeds)
    growth = reference.magnitude(scaling)
    assert cos.dtype == sin.dtype == jnp.float32
    np.testing.assert_allclose(cos, growth * np.cos(angles), atol=1e-4)
    np.testing.assert_allclose(sin, growth * np.sin(angles), atol=1e-4)


@pytest.mark.parametrize("name", [n for n in SCALINGS if n != "none"])
def test_every_scaling_changes_long_texts(name):
    plain, scaled = (np.asarray(tables(s, LONG)[0]) for s in (None, SCALINGS[name]))
    assert np.abs(plain - scaled).max() > 0.1


@pytest.mark.parametrize("name", ["dynamic NTK", "LongRoPE"])
def test_a_row_is_stretched_by_its_own_length_and_not_by_its_neighbours(name):
    together = map(np.asarray, tables(SCALINGS[name], np.concatenate([SHORT, LONG])))
    alone = (tables(SCALINGS[name], row) for row in (SHORT, LONG))
    for found, *rows in zip(together, *alone, strict=True):
        np.testing.assert_allclose(found, np.concatenate(rows), atol=1e-5)


def test_llama3_keeps_fast_pairs_divides_slow_ones_and_joins_them_without_a_step():
    scaling = ef.Llama3Scaling()
    plain = np.array(reference.frequencies(None, 500_000.0, 128, 0))
    ratio = np.asarray(scaling.frequencies(500_000.0, 128, jnp.asarray(0))) / plain
    assert ratio[:20] == pytest.approx(1.0, rel=1e-6)
    assert ratio[-20:] == pytest.approx(1 / 8, rel=1e-6)
    assert (np.diff(ratio) <= 1e-6).all()


@settings(max_examples=15, deadline=None)
@given(shift=st.integers(0, 5000), distance=st.integers(-50, 50), halves=st.booleans())
def test_rotary_scores_depend_only_on_distance(shift, distance, halves):
    rotary = ef.Rotary(layout="half" if halves else "interleaved")
    query, key = normal(0, 1, 1, SIZE), normal(1, 1, 1, SIZE)

    def score(at):
        pair = turned(rotary, query, np.array([at])), turned(rotary, key, np.array([at + distance]))
        return float((np.asarray(pair[0]) * np.asarray(pair[1])).sum())

    assert score(50 + shift) == pytest.approx(score(50), abs=5e-3)


def test_rotary_does_turn_with_the_distance_and_keeps_lengths():
    x = np.asarray(normal(0, 1, 5, SIZE))
    y = np.asarray(turned(ef.Rotary(), x, np.arange(5)))
    np.testing.assert_allclose(np.square(y).sum(-1), np.square(x).sum(-1), rtol=1e-5)
    assert (y[:, 0] == x[:, 0]).all()
    assert (np.abs(y[:, 1:] - x[:, 1:]).max(-1) > 0.1).all()


def test_the_layouts_are_one_function_up_to_a_permutation():
    x, positions = np.asarray(normal(0, 2, 5, SIZE)), np.arange(5)
    order = np.arange(SIZE).reshape(2, -1).T.reshape(-1)  # 0, 8, 1, 9, ...
    half = np.asarray(turned(ef.Rotary(layout="half"), x, positions))
    interleaved = np.asarray(turned(ef.Rotary(layout="interleaved"), x[..., order], positions))
    assert (interleaved == half[..., order]).all()
    assert (interleaved != half).any()


def test_partial_rotary_leaves_the_rest_and_has_the_frequencies_of_its_own_width():
    x, positions = np.asarray(normal(0, 2, 5, SIZE)), np.arange(5)
    y = np.asarray(turned(ef.Rotary(fraction=0.25), x, positions))
    assert (y[..., 4:] == x[..., 4:]).all()
    assert (y[..., :4] == np.asarray(turned(ef.Rotary(), x[..., :4], positions))).all()


def test_two_bases_in_one_process_differ():
    x, positions = normal(0, 1, 5, SIZE), np.arange(5)
    bases = (1e4, 1e6, 1e4)
    small, large, again = (
        np.asarray(jax.jit(ef.Rotary(base=base).__call__)(x, positions)) for base in bases
    )
    assert np.abs(small - large).max() > 0.1
    assert (again == small).all()


def test_position_100_000_is_exact_for_bfloat16_numbers():
    """In bfloat16 the position would be rounded to 99,840: neighbours would have one angle."""
    positions = jnp.array([257, 259, 99_999, 100_000])
    x = normal(0, 2, 4, SIZE).astype(jnp.bfloat16)
    rotary = ef.Rotary()
    expected = reference.rotate(rotary, np.asarray(x, np.float64), np.asarray(positions))
    y = np.asarray(turned(rotary, x, positions), np.float64)
    np.testing.assert_allclose(y, expected, rtol=2**-8, atol=1e-3)
    assert rounding_error(lambda x: turned(rotary, x, positions), x) < 2**-8


def test_positions_may_be_given_per_row():
    x, positions = normal(0, 2, 3, 5, 8), np.array([[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]])
    y = np.asarray(turned(ef.Rotary(), x, positions))
    for found, row, at in zip(y, np.asarray(x), positions, strict=True):
        np.testing.assert_allclose(found, turned(ef.Rotary(), row, at), atol=1e-6)


@pytest.mark.parametrize(("head_dim", "fraction", "width"), [(5, 1.0, 5), (8, 0.4, 3), (8, 0.1, 0)])
def test_a_rotated_width_that_is_odd_or_zero_is_refused(head_dim, fraction, width):
    message = (
        f"must be even and positive; got head_dim={head_dim}, fraction={fraction}, that is {width}."
    )
    with pytest.raises(ValueError, match=message):
        ef.Rotary(fraction=fraction).width(head_dim)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ef.Rotary(fraction=1.5), "`fraction` must be above 0 and at most 1; got 1.5."),
        (lambda: ef.Rotary(fraction=0.0), "`fraction` must be above 0 and at most 1; got 0.0."),
        (lambda: ef.Rotary(base=1.0), "`base` must be above 1; got 1.0."),
        (lambda: ef.LinearScaling(factor=0.0), "`factor` must be positive; got 0.0."),
        (lambda: ef.YaRN(2.0, original_length=0), "`original_length` must be positive; got 0."),
    ],
)
def test_impossible_rotary_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_longrope_needs_a_divisor_per_pair():
    with pytest.raises(
        ValueError, match="`LongRoPE.short` needs one number per rotated pair, 4; got 8."
    ):
        ef.Rotary(scaling=SCALINGS["LongRoPE"]).tables(8, jnp.arange(3))


def test_a_head_of_one_pair_can_be_stretched_too():
    rotary = ef.Rotary(scaling=SCALINGS["dynamic NTK"])
    plain = ef.Rotary().tables(2, jnp.asarray(LONG))
    np.testing.assert_allclose(rotary.tables(2, jnp.asarray(LONG)), plain, atol=1e-6)
