"""Small number types: what is computed, and what is kept, in float32 in spite of them."""

from typing import Any

import jax.numpy as jnp
from jax.tree_util import DictKey, GetAttrKey, SequenceKey
from jaxtyping import Array, DTypeLike, Float


def widen(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`x` in float32 at least; float64 stays float64."""
    return x.astype(wide_dtype(x))


def scaled(x: Float[Array, "*any"], factor: float) -> Float[Array, "*any"]:
    """`factor * x` in the type of `x`, rounded once: a small type need not hold the factor."""
    return x if factor == 1.0 else (factor * widen(x)).astype(x.dtype)


def wide_dtype(x: Float[Array, "*any"]) -> DTypeLike:
    """The type in which softmax, norms and tables are computed for `x`."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def stays_wide(tree: Any, path: tuple[Any, ...]) -> bool:
    """Whether the array at a key path is kept in float32 where a model goes into a small type.

    A module names such fields in `in_float32`: little arrays, of which rounding would change much.
    """
    for key in path:
        if isinstance(key, GetAttrKey):
            if key.name in getattr(type(tree), "in_float32", ()):
                return True
            tree = getattr(tree, key.name, None)
        elif isinstance(key, SequenceKey | DictKey):
            tree = tree[key.idx if isinstance(key, SequenceKey) else key.key]
        else:
            return False
    return False
