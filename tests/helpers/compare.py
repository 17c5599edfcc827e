"""Comparison of a part with its slow twin, in value and in the gradient of every array."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers.hot import cast

FLOAT64 = 1e-8
# Position tables are made in float32 even in a float64 program: an error of 2^-24 per number, which
# the scores and a peaked softmax enlarge.
FLOAT32_TABLES = 3e-5


@eqx.filter_jit
def value_and_gradients(function, arguments, cotangent):
    """`function(*arguments)`, and the gradients of its product with `cotangent`."""

    def weighted(arguments):
        y = function(*arguments)
        return (y * cotangent).sum(), y

    (_, y), gradients = eqx.filter_value_and_grad(weighted, has_aux=True)(arguments)
    return y, gradients


def assert_agrees(function, twin, *arguments, tolerance=FLOAT64):
    """`function` in JAX and `twin` in NumPy agree in value and in the gradient of every array.

    Both run in float64. A gradient is compared along a random direction of each array, with a
    difference quotient of the twin of fourth order.
    """
    plain = jax.tree.map(lambda x: np.asarray(x, np.float64) if _floats(x) else x, arguments)
    expected = twin(*plain)
    cotangent = np.random.default_rng(0).standard_normal(expected.shape)
    with jax.enable_x64(True):
        arguments = jax.tree.map(lambda x: jax.device_put(x) if _floats(x) else x, plain)
        y, gradients = value_and_gradients(function, arguments, jax.device_put(cotangent))
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance * _size(expected))
    _assert_gradients_agree(twin, plain, cotangent, gradients, max(tolerance, 1e-6))


def assert_close(got, expected, tolerance):
    """Equal up to `tolerance` times the largest number expected; two trees, leaf by leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(_size(b), 1e-3))


def same_bits(a, b):
    """Whether two trees have the same structure, and the same bits in every array.

    Compared by NumPy, which compiles nothing.
    """
    (one, made), (other, like) = jax.tree.flatten(a), jax.tree.flatten(b)
    return made == like and all(
        (x.shape, x.dtype) == (y.shape, y.dtype)
        and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(one, other, strict=True)
    )


def rounding_error(function, *arguments):
    """How far `function` in bfloat16 is from itself in float32, as a part of the largest number."""
    small = cast(arguments, jnp.bfloat16)
    got = function(*small)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(got))
    exact = np.asarray(function(*cast(small, jnp.float32)))
    return np.abs(np.asarray(got, np.float32) - exact).max() / np.abs(exact).max()


def _assert_gradients_agree(twin, arguments, cotangent, gradients, tolerance):
    leaves, structure = jax.tree.flatten(arguments)
    found = jax.tree.leaves(gradients)
    assert len(found) == sum(map(_floats, leaves))
    found = iter(found)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(arguments)]
    numbers = np.random.default_rng(1)
    step = 1e-4
    for i, leaf in enumerate(leaves):
        if not _floats(leaf):
            continue
        gradient = np.asarray(next(found))
        direction = numbers.standard_normal(leaf.shape)

        def along(t, i=i, leaf=leaf, direction=direction):
            moved = [*leaves[:i], leaf + t * step * direction, *leaves[i + 1 :]]
            return (twin(*jax.tree.unflatten(structure, moved)) * cotangent).sum()

        slope = (8 * (along(1) - along(-1)) - (along(2) - along(-2))) / (12 * step)
        got = float((gradient * direction).sum())
        scale = np.linalg.norm(gradient) + 1.0
        assert abs(got - slope) < tolerance * scale, f"gradient of {names[i]}: {got}, not {slope}"


def _floats(x):
    return eqx.is_array_like(x) and hasattr(x, "dtype") and np.issubdtype(x.dtype, np.floating)


def _size(x):
    return float(np.abs(x).max(initial=0.0))
