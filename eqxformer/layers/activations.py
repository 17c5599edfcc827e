"""Activations by name."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eqxformer.layers.wide import wide_dtype, widen

Activation = Literal[
    "relu", "relu_squared", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh", "sigmoid"
]


def gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Exact Gaussian error linear unit: `x * Phi(x)` (Hendrycks & Gimpel 2016).

    Through `lax.erf`: on a CPU the `erfc` that `jax.nn.gelu` uses takes twice as long. In float32:
    where `x` is below zero, nearly all of the sum cancels.
    """
    return _wide(lambda x: x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)), x)


def gelu_tanh(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """GELU through a tanh: `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`; GPT-2's `gelu_new`.

    In float32: float16 does not hold the cube of 41, nor the slope of that of 148.
    """
    return _wide(functools.partial(jax.nn.gelu, approximate=True), x)


def _wide(function: Callable[[Array], Array], x: Array) -> Array:
    """The function in float32, of which nothing but `x`, in its own type, is kept for gradients."""
    if x.dtype == wide_dtype(x):
        return function(x)
    return jax.checkpoint(lambda x: function(widen(x)).astype(x.dtype), prevent_cse=False)(x)


def quick_gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """GELU through a sigmoid: `x * sigmoid(1.702 x)`, as in CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def relu_squared(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`max(x, 0)^2` (So et al. 2021, Primer)."""
    return jnp.square(jax.nn.relu(x))


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "relu_squared": relu_squared,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}


def activation(name: Activation) -> Callable[[Array], Array]:
    """The elementwise function of this name; `gelu` is the exact one.

    Raises `ValueError` with the list of names for one that is not there.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> ef.activation("relu_squared")(jnp.array([-1.0, 3.0])).tolist()
        [0.0, 9.0]
    """
    if name not in _FUNCTIONS:
        raise ValueError(f"`activation` must be one of {', '.join(_FUNCTIONS)}; got {name!r}.")
    return _FUNCTIONS[name]
