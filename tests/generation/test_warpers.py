"""Warpers forbid what is too unlikely: as the loops do, whatever the ties, sizes and dtypes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.generation._selection import kth_largest, largest_threshold
from tests.generation import twins

VOCABULARIES = (1, 2, 40, 300)
INF = np.inf

WARPERS = {
    "top_k": (ef.TopK, twins.top_k, (1, 3, 40)),
    "top_p": (ef.TopP, twins.top_p, (0.013, 0.45, 0.913, 0.997)),
    "min_p": (ef.MinP, twins.min_p, (0.0, 0.053, 0.31, 1.0)),
    "typical": (ef.Typical, twins.typical, (0.013, 0.45, 0.913)),
    "epsilon": (ef.Epsilon, twins.epsilon, (1e-6, 0.0123, 0.6)),
    "eta": (ef.Eta, twins.eta, (1e-6, 0.0123, 0.6)),
    "top_h": (ef.TopH, twins.top_h, (0.013, 0.45, 0.913)),
}


def rows_of_all_kinds(vocab, seed=0):
    """Smooth rows, rows with ties, with forbidden tokens, and of great spread."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((8, vocab)) * 2
    rows[2:4] = np.round(rows[2:4])
    forbidden = random.random((2, vocab)) < 0.4
    forbidden[:, random.integers(vocab)] = False
    rows[4:6] = np.where(forbidden, -INF, rows[4:6])
    rows[6] *= 40
    return rows.astype(np.float32)


@eqx.filter_jit
def warp(warper, logits):
    """The warper, compiled once for all tests of its kind."""
    return warper(logits)


@pytest.mark.parametrize("name", WARPERS)
def test_a_warper_forbids_what_the_loop_forbids_and_leaves_the_rest_as_it_is(name):
    warper, twin, values = WARPERS[name]
    for vocab in VOCABULARIES:
        rows = rows_of_all_kinds(vocab)
        for value in values:
            expected = [twins.kept(row, twin(row, value)) for row in rows]
            found = warp(warper(value), jnp.asarray(rows))
            np.testing.assert_array_equal(found, expected, err_msg=f"{vocab}, {value}")


@pytest.mark.parametrize("name", WARPERS)
def test_ties_share_their_fate_so_a_warper_does_not_see_the_order_of_the_vocabulary(name):
    warper, _, values = WARPERS[name]
    rows = np.repeat(rows_of_all_kinds(10), 4, axis=1)
    order = np.random.default_rng(1).permutation(40)
    for value in values:
        found = np.asarray(warp(warper(value), jnp.asarray(rows)))
        shuffled = np.asarray(warp(warper(value), jnp.asarray(rows[:, order])))
        np.testing.assert_array_equal(found[:, order], shuffled)


@pytest.mark.parametrize("name", ["top_p", "min_p", "typical", "epsilon"])
@pytest.mark.parametrize("at_least", [2, 5])
def test_at_least_so_many_stay_and_no_more_than_that_asks_for(name, at_least):
    warper, twin, values = WARPERS[name]
    rows = rows_of_all_kinds(40)[:2]  # without ties
    strictest = {"min_p": 1.0, "epsilon": 0.6}.get(name, values[0])
    found = np.isfinite(warp(warper(strictest, at_least=at_least), jnp.asarray(rows)))
    alone = np.array([twin(row, strictest) for row in rows])
    assert (alone.sum(1) < at_least).all()
    assert (found.sum(1) == at_least).all()
    assert (found | ~alone).all()
    if name != "typical":
        np.testing.assert_array_equal(found, [twins.top_k(row, at_least) for row in rows])


@pytest.mark.parametrize("name", WARPERS)
def test_half_precision_comes_back_and_forbids_what_its_numbers_in_single_do(name):
    warper, _, values = WARPERS[name]
    for dtype in (jnp.bfloat16, jnp.float16):
        half = rows_of_all_kinds(40).astype(dtype)
        found = warp(warper(values[1]), jnp.asarray(half))
        assert found.dtype == dtype
        single = warp(warper(values[1]), jnp.asarray(half, jnp.float32))
        np.testing.assert_array_equal(np.asarray(found, np.float32), single)


@pytest.mark.parametrize("name", WARPERS)
def test_a_nan_stays_and_a_row_without_tokens_stays_without(name):
    warper, _, values = WARPERS[name]
    rows = jnp.array([[1.0, jnp.nan, 2.0], [-INF, -INF, -INF], [-jnp.nan, -INF, 0.0]])
    for value in values:
        found = np.asarray(warp(warper(value), rows))
        assert np.isnan(found[[0, 2], [1, 0]]).all()
        assert (found[1] == -INF).all()


@pytest.mark.parametrize(
    "mildest",
    [ef.TopK(40), ef.TopK(99), ef.TopP(1.0), ef.MinP(0.0), ef.Typical(1.0), ef.TopH(1.0)],
)
def test_the_mildest_setting_changes_nothing_not_even_what_is_as_good_as_impossible(mildest):
    rows = rows_of_all_kinds(40)
    rows[0, 0], rows[1, 0] = -500.0, 500.0
    np.testing.assert_array_equal(warp(mildest, jnp.asarray(rows)), rows)


def test_top_p_keeps_the_token_that_crosses_the_sum():
    logits = jnp.log(jnp.array([[0.05, 0.5, 0.15, 0.3]]))
    for p, count in ((0.1, 1), (0.45, 1), (0.55, 2), (0.75, 2), (0.85, 3), (0.97, 4)):
        assert np.isfinite(warp(ef.TopP(p), logits)).sum() == count


def test_typical_may_forbid_the_likeliest():
    logits = jnp.log(jnp.array([[0.4, 0.15, 0.15, 0.15, 0.15]]))
    found = np.isfinite(warp(ef.Typical(0.5), logits))
    np.testing.assert_array_equal(found, [[0, 1, 1, 1, 1]])


def test_temperature_divides_and_gives_back_the_dtype_it_got():
    rows = rows_of_all_kinds(7)
    np.testing.assert_allclose(ef.Temperature(0.7)(jnp.asarray(rows)), rows / 0.7, rtol=1e-6)
    assert ef.Temperature(0.7)(jnp.ones((1, 3), jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_tiny_temperature_leaves_the_likeliest_alone_also_in_one_compiled_program():
    logits = jnp.array([[0.0, 300.0, 299.0]])
    unlikely = (ef.TopP(0.9), ef.MinP(0.5), ef.Epsilon(0.1), ef.Typical(0.9))
    for warper in (*unlikely, ef.Eta(0.1), ef.TopH(0.9)):
        chain = ef.Temperature(1e-30) | warper
        np.testing.assert_array_equal(np.isfinite(warp(chain, logits)), [[0, 1, 0]])


def test_eta_keeps_of_a_flat_distribution_what_epsilon_forbids():
    flat = jnp.log(jnp.array([[0.3, 0.25, 0.25, 0.2]]))
    assert np.isfinite(warp(ef.Epsilon(0.22), flat)).sum() == 3
    assert np.isfinite(warp(ef.Eta(0.22), flat)).sum() == 4


def test_normalized_logits_are_log_probabilities_also_beside_what_is_forbidden():
    rows = rows_of_all_kinds(40)
    found = np.asarray(warp(ef.Normalize(), jnp.asarray(rows)))
    np.testing.assert_allclose(np.exp(found), [twins.softmax(row) for row in rows], atol=1e-6)


def test_normalized_rows_without_a_token_stay_forbidden_and_those_of_nan_stay_nan():
    found = ef.Normalize()(jnp.array([[-INF, -INF], [np.nan, 0.0], [np.nan, -INF]]))
    np.testing.assert_array_equal(found, [[-INF, -INF], [np.nan] * 2, [np.nan] * 2])


# The search for a threshold


@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "infinite", "tiny"])
def test_the_kth_largest_is_that_of_a_sort_for_every_k(kind):
    random = np.random.default_rng(0)
    rows = random.standard_normal((3, 17)).astype(np.float32)
    rows = {
        "normal": rows,
        "ties": np.round(rows),
        "zeros": np.where(random.random(rows.shape) < 0.5, np.float32(-0.0), np.float32(0.0)),
        "infinite": np.where(random.random(rows.shape) < 0.5, -INF, rows).astype(np.float32),
        "tiny": np.ldexp(rows, -100).astype(np.float32),
    }[kind]
    find = jax.jit(kth_largest)
    for k in range(1, 18):
        expected = -np.sort(-rows, axis=1)[:, k - 1 : k]
        np.testing.assert_array_equal(find(jnp.asarray(rows), jnp.asarray(k)), expected)


def test_where_not_even_everything_is_enough_nothing_is_below_the_threshold():
    values = jnp.array([[1.0, -INF, 0.0]])
    least = largest_threshold(values, lambda marked: marked.sum(-1) >= 4)
    assert not (values < least).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ef.Temperature(0.0), r"`temperature` must be above 0.*`Greedy\(\)`; got 0.0"),
        (lambda: ef.Temperature(INF), "`temperature` must be above 0 and finite"),
        (lambda: ef.Temperature(np.nan), "`temperature` must be above 0"),
        (lambda: ef.TopK(0), "`k` must be at least 1; got 0"),
        (lambda: ef.TopP(0.0), "`p` must be above 0 and at most 1; got 0.0"),
        (lambda: ef.TopP(1.01), "`p` must be above 0 and at most 1; got 1.01"),
        (lambda: ef.TopP(0.5, at_least=0), "`at_least` must be at least 1; got 0"),
        (lambda: ef.MinP(-0.1), "`p` must be at least 0 and at most 1; got -0.1"),
        (lambda: ef.MinP(0.5, at_least=-1), "`at_least` must be at least 1; got -1"),
        (lambda: ef.Typical(0.0), "`mass` must be above 0 and at most 1; got 0.0"),
        (lambda: ef.Epsilon(1.0), "`epsilon` must be above 0 and below 1; got 1.0"),
        (lambda: ef.Eta(0.0), "`eta` must be above 0 and below 1; got 0.0"),
        (lambda: ef.TopH(0.0), "`h` must be above 0 and at most 1; got 0.0"),
    ],
)
def test_settings_out_of_bounds_are_refused_with_the_bounds(make, message):
    with pytest.raises(ValueError, match=message):
        make()
