"""Sums over the places of sequences, some places at a time where their logits are many."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from eqxformer.losses import chunked


def summed(function: Callable[..., Any], *arrays: Array, vocab: int) -> Any:
    """`function(*arrays)`, which is a sum over places, in pieces if there are many logits.

    The logits of a piece exist while it is summed, and once more while gradients go through it.
    Pieces are cut along the sequences, so that each of several devices has its rows in all of them.

    Arguments:
        function: maps arrays like those given, of any number of places, to a tree of sums.
        arrays: the last has an element per place, `*batch seq`; the others may have more axes
            behind those. What is filled up with zeros must add nothing to the sum.
        vocab: logits of a place.
    """
    if arrays[-1].size * vocab <= chunked.LARGE:
        return function(*arrays)
    *batch, seq = arrays[-1].shape
    length = max(1, chunked.CHUNK // math.prod(batch))
    count = -(-seq // length)
    axis = len(batch)

    def cut(x: Array) -> Array:
        wide = [(0, count * length - seq if i == axis else 0) for i in range(x.ndim)]
        filled = jnp.pad(x, wide)
        return jnp.moveaxis(
            filled.reshape(*x.shape[:axis], count, length, *x.shape[axis + 1 :]), axis, 0
        )

    pieces = tuple(map(cut, arrays))
    again = jax.checkpoint(function, prevent_cse=False)  # a loop is no place for common parts

    def add(sums: Any, piece: tuple[Array, ...]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, again(*piece)), None

    shapes = jax.eval_shape(lambda: function(*(piece[0] for piece in pieces)))
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, nothing, pieces)[0]
