"""Transformations of arrays that hold several copies of one: layers of a scan, experts, heads.

What is made of a whole array, as a norm or a row and a column, is made of each copy by itself, so
that steps are the same however a model stores its layers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from eqxformer.axes import leaf_copies


def each_copy(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """A stateless transformation of every array, applied to each of the copies stacked in one."""

    def one(update: jax.Array, parameter: jax.Array) -> jax.Array:
        return transform.update(update, transform.init(parameter), parameter)[0]  # pyright: ignore

    def changed(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        copies = _copies(params)

        def of(path: Any, update: jax.Array, parameter: jax.Array) -> jax.Array:
            return _mapped(one, copies(path))(update, parameter)

        return jax.tree_util.tree_map_with_path(of, updates, params), state

    return optax.GradientTransformation(transform.init, changed)


def factored_moments(decay: float, least: int) -> optax.GradientTransformation:
    """`optax.scale_by_factored_rms`, by the row and column of each of the copies stacked in one.

    Arrays that hold one alone have the memory that optax gives them.

    Arguments:
        decay: exponent of the decay, `1 - step^-decay`.
        least: axes shorter than this are not factored.
    """
    whole = optax.scale_by_factored_rms(decay_rate=decay, min_dim_size_to_factor=least)

    def own(parameter: jax.Array, copies: int) -> Any:
        """The axes of what each copy remembers; None for the count, and where nothing is kept."""
        one = jax.ShapeDtypeStruct(parameter.shape[copies:], parameter.dtype)
        factored = jax.eval_shape(whole.init, one).v.shape != one.shape
        pair, single = (0, None) if factored else (None, 0)
        return optax.FactoredState(count=None, v_row=pair, v_col=pair, v=single)  # pyright: ignore

    def init(params: Any) -> Any:
        copies = _copies(params)

        def of(path: Any, parameter: jax.Array) -> Any:
            count = copies(path)
            return _mapped(whole.init, count, 0, own(parameter, count))(parameter)

        found = jax.tree_util.tree_map_with_path(of, params)
        state = _turned(found, params, optax.FactoredState(0, 0, 0, 0))
        return state._replace(count=jnp.zeros([], jnp.int32))

    def changed(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        copies = _copies(params)

        def of(path: Any, update: Any, row: Any, column: Any, each: Any, parameter: Any) -> Any:
            count = copies(path)
            axes, memory = own(parameter, count), state._replace(v_row=row, v_col=column, v=each)
            step = _mapped(whole.update, count, (0, axes, 0), (0, axes))
            return step(update, memory, parameter)

        trees = (updates, state.v_row, state.v_col, state.v, params)
        found = jax.tree_util.tree_map_with_path(of, *trees)
        changes, memory = _turned(found, updates, (0, optax.FactoredState(0, 0, 0, 0)))
        return changes, memory._replace(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, changed)


def _copies(params: Any) -> Callable[[Any], int]:
    """How many axes in front of an array only count copies, by its path in the parameters."""
    found = leaf_copies(params)
    return lambda path: found.get(jax.tree_util.keystr(path, simple=True, separator="."), 0)


def _mapped(
    function: Callable[..., Any], copies: int, inward: Any = 0, outward: Any = 0
) -> Callable[..., Any]:
    """A function of every copy by itself, in arrays with so many axes of copies in front."""
    for _ in range(copies):
        function = jax.vmap(function, inward, outward)
    return function


def _turned(found: Any, outside: Any, inside: Any) -> Any:
    """A tree like `inside` of trees like `outside`, of a tree the other way round."""
    return jax.tree.transpose(jax.tree.structure(outside), jax.tree.structure(inside), found)
