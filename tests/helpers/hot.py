"""Parameters off their neutral values: a gain of one or a bias of zero hides its absence."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


def hot(module, key):
    """`module` with new parameters: vectors moved by 0.3 N, matrices drawn as 2 / sqrt(fan_in) N.

    Drawn by NumPy, which compiles nothing.
    """
    numbers = np.random.default_rng(np.asarray(jax.random.key_data(key)))

    def move(leaf):
        noise = numbers.standard_normal(leaf.shape)
        if leaf.ndim < 2:
            return _made(np.asarray(leaf, np.float64) + 0.3 * noise, leaf.dtype)
        return _made(2.0 / np.sqrt(leaf.shape[-2]) * noise, leaf.dtype)

    return jax.tree.map(lambda leaf: move(leaf) if eqx.is_inexact_array(leaf) else leaf, module)


def drawn(config, *sizes, seed=0, **options):
    """The part that `config.build(*sizes, key=key, **options)` makes, hot from the start.

    No initialiser runs, which saves compiling them.
    """
    numbers = np.random.default_rng(seed)

    def draw(leaf):
        noise = numbers.standard_normal(leaf.shape)
        scaled = 0.6 + 0.3 * noise if leaf.ndim < 2 else 2.0 / np.sqrt(leaf.shape[-2]) * noise
        return _made(scaled, leaf.dtype)

    shapes = eqx.filter_eval_shape(
        lambda key: config.build(*sizes, key=key, **options), jax.random.key(0)
    )
    return jax.tree.map(draw, shapes)


def cast(tree, dtype):
    """`tree` with all its floating-point arrays in this type."""
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, tree)


def normal(seed, *shape):
    """Standard normal numbers in float32."""
    return _made(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _made(numbers, dtype):
    """An array of JAX of what NumPy has rounded, which compiles nothing: `jnp.asarray` would."""
    return jax.device_put(np.asarray(numbers, dtype))
