"""How weights start: the variance, the bounds and the shapes that the papers give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef

ROWS, COLUMNS = 40, 60
DEVIATIONS = {
    "zeros": (ef.Zeros(), 0.0),
    "normal": (ef.Normal(0.3), 0.3),
    "truncated normal": (ef.TruncatedNormal(0.3), 0.3 * 0.8796),  # what cutting at 2 leaves
    "LeCun": (ef.LeCun(), ROWS**-0.5),
    "Glorot": (ef.Glorot(), (2 / (ROWS + COLUMNS)) ** 0.5),
    "He": (ef.He(), (2 / ROWS) ** 0.5),
    "fan-in uniform": (ef.FanInUniform(), (3 * ROWS) ** -0.5),
    "orthogonal": (ef.Orthogonal(2.0), 2 * COLUMNS**-0.5),
}


@pytest.mark.parametrize("shape", [(ROWS, COLUMNS), (8, ROWS, COLUMNS)])
@pytest.mark.parametrize("name", DEVIATIONS)
def test_initialisers_have_their_deviation_whatever_stands_in_front(name, shape):
    init, deviation = DEVIATIONS[name]
    weight = np.asarray(init(jax.random.key(0), shape))
    assert weight.shape == shape
    assert weight.dtype == np.float32
    assert weight.std() == pytest.approx(deviation, rel=0.05)
    assert abs(weight.mean()) <= 5 * deviation / weight.size**0.5


@pytest.mark.parametrize(
    ("init", "bound"),
    [
        (ef.TruncatedNormal(0.3), 0.6),
        (ef.FanInUniform(), ROWS**-0.5),
        (ef.Glorot(), (6 / (ROWS + COLUMNS)) ** 0.5),
    ],
)
def test_bounded_initialisers_reach_their_bound_and_stay_within(init, bound):
    weight = np.abs(init(jax.random.key(0), (ROWS, COLUMNS)))
    assert 0.95 * bound < weight.max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 5, 5)])
def test_orthogonal_matrices_are_orthogonal(shape):
    weight = np.asarray(ef.Orthogonal(2.0)(jax.random.key(0), shape), np.float64) / 2
    small = weight.swapaxes(-1, -2) if shape[-2] < shape[-1] else weight
    product = small.swapaxes(-1, -2) @ small
    np.testing.assert_allclose(
        product, np.broadcast_to(np.eye(min(shape[-2:])), product.shape), atol=1e-5
    )


@pytest.mark.parametrize("draw", [ef.Normal(std=0.3), ef.TruncatedNormal(std=0.3)])
def test_a_weight_has_the_same_bits_within_a_program_and_is_the_scaled_draw(draw):
    shape = (7, 5)
    weight = draw(jax.random.key(3), shape)
    within = jax.jit(lambda key: draw(key, shape))(jax.random.key(3))
    np.testing.assert_array_equal(weight, within)
    unit = {
        ef.Normal: lambda key: jax.random.normal(key, shape),
        ef.TruncatedNormal: lambda key: jax.random.truncated_normal(key, -2.0, 2.0, shape),
    }[type(draw)](jax.random.key(3))
    np.testing.assert_allclose(weight, 0.3 * unit, rtol=3e-7)
    with jax.enable_x64(True):
        assert weight.dtype == draw(jax.random.key(3), shape).dtype == jnp.float32


def test_the_same_key_draws_the_same_weight_and_another_key_another():
    draw = ef.LeCun()
    first, again = (draw(jax.random.key(0), (3, 4)) for _ in range(2))
    assert (first == again).all()
    assert (first != draw(jax.random.key(1), (3, 4))).all()


def test_a_part_starts_as_its_config_says():
    part = ef.Linear(3, 4, init=ef.Zeros(), key=jax.random.key(0))
    assert not part.weight.any()
    assert part.bias is not None
    assert not part.bias.any()
    assert jnp.unique(ef.Embedding(5, 4, key=jax.random.key(0)).weight).size == 20
