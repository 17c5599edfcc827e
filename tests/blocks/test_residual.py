"""The residual wiring: which norms are there decides the kind; dropout and drop path only train."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers import reference, twins
from tests.helpers.hot import hot, normal
from tests.helpers.models import close

NORM = ef.LayerNorm.Config()
WIRINGS = {
    "plain": ef.Residual.Config(),
    "pre": ef.pre_norm(),
    "post": ef.post_norm(),
    "sandwich": ef.sandwich_norm(ef.RMSNorm.Config(offset=1.0)),
    "after the branch": ef.Residual.Config(post_norm=NORM),
    "all and scaled": ef.Residual.Config(NORM, ef.RMSNorm.Config(), NORM, scale=0.37),
}


def _square(x):
    return x * x + 1.0


@pytest.mark.parametrize("name", WIRINGS)
def test_each_wiring_is_the_formula(name):
    part = hot(WIRINGS[name].build(5), jax.random.key(3))
    x = normal(0, 2, 3, 5)
    expected = np.stack([twins.residual(part, row, _square) for row in np.asarray(x)])
    close(part(x, _square), expected)


def test_named_wirings_are_the_ones_of_the_papers():
    x, f = np.asarray(normal(1, 3, 5)), _square

    def norm(y):
        return reference.norm(ef.LayerNorm(5), y)

    part = {name: WIRINGS[name].build(5) for name in ("pre", "post")}
    close(part["pre"](jnp.asarray(x), f), x + f(norm(x)))
    close(part["post"](jnp.asarray(x), f), norm(x + f(x)))
    close(ef.sandwich_norm().build(5)(jnp.asarray(x), f), x + norm(f(norm(x))))


def test_what_a_branch_hands_on_beside_its_result_is_returned_untouched():
    y, beside = ef.Residual(5).run(jnp.ones((2, 5)), lambda h: (h, {"cache": 7}))
    assert beside == {"cache": 7}
    close(y, 2 * np.ones((2, 5)))


def test_without_a_key_nothing_is_dropped():
    x = normal(2, 3, 4, 5)
    part = ef.Residual(5, dropout=0.9, drop_path=0.9)
    assert eqx.tree_equal(part(x, _square), ef.Residual(5)(x, _square))


def test_drop_path_keeps_or_drops_whole_sequences_and_keeps_the_mean():
    rate, rows = 0.3, 4000
    x = jnp.zeros((rows, 2, 3))
    y = np.asarray(ef.Residual(3, drop_path=rate)(x, lambda h: h + 1.0, key=jax.random.key(0)))
    kept = y[:, 0, 0] > 0
    np.testing.assert_array_equal(y, np.where(kept, 1 / (1 - rate), 0)[:, None, None] * (x + 1))
    error = np.sqrt(rate * (1 - rate) / rows)
    assert abs(kept.mean() - (1 - rate)) < 4 * error


def test_dropout_drops_single_numbers_of_the_branch_and_none_of_the_stream():
    rate, x = 0.25, jnp.full((40, 50, 3), 7.0)
    y = np.asarray(ef.Residual(3, dropout=rate)(x, jnp.ones_like, key=jax.random.key(1)))
    np.testing.assert_allclose(np.unique(y), [7.0, 7.0 + 1 / (1 - rate)], rtol=1e-6)
    assert abs((y > 7).mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / y.size)


def test_dropout_and_drop_path_draw_independently():
    x = jnp.zeros((2000, 1, 1))
    part = ef.Residual(1, dropout=0.5, drop_path=0.5)
    y = part(x, lambda h: h + 1.0, key=jax.random.key(2))
    assert abs(float((y > 0).mean()) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 2000)


@pytest.mark.parametrize("name", ["dropout", "drop_path"])
@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0])
def test_a_rate_outside_zero_to_one_is_refused(name, rate):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 0 and below 1; got {rate}"):
        ef.Residual.Config(**{name: rate})


def test_a_branch_of_scale_zero_leaves_the_stream():
    x = normal(3, 2, 3, 5)
    assert eqx.tree_equal(ef.Residual(5, scale=0.0)(x, _square), x)
