"""Convolution: against a loop in NumPy, on any leading axes, and its refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers.compare import assert_agrees, assert_close
from tests.helpers.hot import drawn, normal


def convolve(x, weight, bias, stride):
    """The definition, one place at a time."""
    kernel, side = weight.shape[0], weight.shape[0] // 2
    steps = range(0, x.shape[-2], stride)
    y = np.zeros((*x.shape[:-2], len(steps), weight.shape[-1]))
    for t, start in enumerate(steps):
        for k in range(kernel):
            place = start + k - side
            if 0 <= place < x.shape[-2]:
                y[..., t, :] += x[..., place, :] @ weight[k]
    return y + bias


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "frames"), [(1, 4), (3, 1), (3, 7), (5, 6)])
def test_every_place_is_the_sum_over_its_neighbours(kernel, frames, stride):
    config = ef.Convolution.Config(kernel=kernel, stride=stride)
    part = drawn(config, 3, 2)
    x = np.random.default_rng(0).standard_normal((2, 1, frames, 3))
    assert_agrees(
        lambda part, x: part(x),
        lambda part, x: convolve(x, part.weight, part.bias, stride),
        part,
        jnp.asarray(x),
    )


def test_vmap_gives_what_a_batch_gives():
    part, x = drawn(ef.Convolution.Config(stride=2), 4, 5), normal(0, 3, 6, 4)
    mapped, batch = jax.jit(lambda x: (jax.vmap(part)(x), part(x)))(x)
    assert batch.shape == (3, 3, 5)
    assert_close(mapped, batch, 1e-6)


def test_the_whole_window_is_fan_in():
    wide = ef.Convolution(64, 128, kernel=9, key=jax.random.key(0))
    assert 0.9 < float(jnp.std(wide.weight)) * (9 * 64) ** 0.5 < 1.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 2}, "`kernel` must be odd and positive; got 2"),
        ({"kernel": -1}, "`kernel` must be odd and positive; got -1"),
        ({"stride": 0}, "`stride` must be positive; got 0"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ef.Convolution.Config(**options)
