"""Rows of a table by index, with a gradient that is exact however many places ask for one row."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from eqxformer.layers.wide import wide_dtype


def rows_of(
    table: Float[Array, "rows dim"],
    index: Int[Array, "*batch"],
    take: Callable[[Array, Array], Array] = lambda table, index: table[index],
) -> Float[Array, "*batch dim"]:
    """`take(table, index)`, which is `table[index]`, with its gradient summed in float32.

    A row's gradient has a part from every place that asks for it. In bfloat16, with 8 bits, a sum
    of equal parts would end at the 256th of them.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from eqxformer.layers.gather import rows_of
        >>> index = jnp.zeros(1000, jnp.int32)
        >>> table = jnp.ones((2, 1), jnp.bfloat16)
        >>> jax.grad(lambda table: rows_of(table, index).sum())(table).tolist()
        [[1000.0], [0.0]]
    """
    wide = wide_dtype(table)
    if wide == table.dtype:
        return take(table, index)

    # A rule for the way forwards, which JAX transposes: what is wide in it is the change of the
    # table, and backwards its sums. The table itself is read as it is.
    @jax.custom_jvp
    def taken(table: Array, index: Array) -> Array:
        return take(table, index)

    @taken.defjvp
    def derivative(
        primals: tuple[Array, Array], tangents: tuple[Array, Any]
    ) -> tuple[Array, Array]:
        (table, index), change = primals, tangents[0].astype(wide)
        _, moved = jax.jvp(lambda rows: take(rows, index), (jnp.zeros_like(change),), (change,))
        return taken(table, index), moved.astype(table.dtype)

    return taken(table, index)
