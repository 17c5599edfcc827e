"""Experts on a mesh: every device routes rows of its own, and runs the experts that it holds.

Sorting the tokens of all devices together would bring all of them to each; here a device sorts its
own. Where the mesh has an axis `expert`, the devices along it hold different experts: they gather
their tokens, each runs those that chose an expert of its own, and the results are summed back to
where the tokens came from. No token is dropped.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from eqxformer.constraints import ROWS, cut, mesh_sizes

PIECES = 4  # of the rows that an evenly loaded device has

# `run(experts, rows, group, key)`: rows that are sorted by their group, each through its expert.
Run = Callable[[Any, Array, Array, PRNGKeyArray | None], Array]


def over_mesh(
    run: Run,
    experts: Any,
    tokens: Float[Array, "tokens dim"],
    weights: Float[Array, "tokens top"],
    ids: Int[Array, "tokens top"],
    *,
    count: int,
    key: PRNGKeyArray | None,
) -> Float[Array, "tokens dim"]:
    """The chosen experts' results, weighted and summed per token.

    Arguments:
        run: a function of experts, rows sorted by their expert, the place of each row's expert
            among those given, and a key.
        experts: the experts, stacked along the first axis of every array.
        count: how many there are.
        key: switches dropout on; every device draws for itself.
    """
    sizes = mesh_sizes()
    rows = cut((*ROWS, "sequence"), tokens.shape[0], sizes)
    held = "expert" if cut(("expert",), count, sizes) else None
    manual = {axis for axis in (*ROWS, "sequence") if axis in sizes}
    arrays, static = eqx.partition(experts, eqx.is_array)

    def local(arrays: Any, *given: Array) -> Array:
        # Devices that hold the same tokens must draw the same for them.
        apart = tuple(axis for axis in (*ROWS, "sequence", "expert") if axis in {*rows, held})
        own = key
        if key is not None and apart:
            own = jax.random.fold_in(key, jax.lax.axis_index(apart))
        mine = partial(run, eqx.combine(arrays, static))
        if held is None:
            return mixed(mine, *given, first=0, count=count, pieces=1, key=own)
        share = sizes[held]
        whole = given
        if held in rows:
            whole = tuple(jax.lax.all_gather(x, held, tiled=True) for x in given)
        first = jax.lax.axis_index(held) * (count // share)
        pieces = PIECES * share
        y = mixed(mine, *whole, first=first, count=count // share, pieces=pieces, key=own)
        if held in rows:
            return jax.lax.psum_scatter(y, held, tiled=True)
        return jax.lax.psum(y, held)

    by_rows = PartitionSpec(rows)
    spread = jax.shard_map(
        local,
        in_specs=(PartitionSpec(held), by_rows, by_rows, by_rows),
        out_specs=by_rows,
        axis_names=manual,
        check_vma=False,
    )
    return spread(arrays, tokens, weights, ids)


def by_rows(function: Callable[..., Any], rows: Float[Array, "tokens n"], whole: Any = None) -> Any:
    """`function(rows, whole)` of every token by itself, on the device that the token is on.

    XLA would bring the scores of all tokens to each device to find the largest of every row.
    """
    sizes = mesh_sizes()
    axes = cut((*ROWS, "sequence"), rows.shape[0], sizes)
    if not axes:
        return function(rows, whole)
    by = PartitionSpec(axes)
    return jax.shard_map(
        function,
        in_specs=(by, PartitionSpec()),
        out_specs=by,
        axis_names=set(axes),
        check_vma=False,
    )(rows, whole)


def mixed(
    run: Callable[[Array, Array, PRNGKeyArray | None], Array],
    tokens: Float[Array, "tokens dim"],
    weights: Float[Array, "tokens top"],
    ids: Int[Array, "tokens top"],
    *,
    first: int | Int[Array, ""],
    count: int,
    pieces: int,
    key: PRNGKeyArray | None,
) -> Float[Array, "tokens dim"]:
    """What `count` experts from `first` on add to each token.

    Choices of other experts are sorted to the end. All may be of these experts, and mostly few are:
    they are gone through in pieces, and a piece in which there is none is left out.
    """
    top = ids.shape[1]
    place = ids.reshape(-1) - first
    place = jnp.where((place >= 0) & (place < count), place, count)
    most = tokens.shape[0] * min(top, count)
    order = jnp.argsort(place, stable=True)[:most]  # by expert; choice c is of token c // top
    order = jnp.pad(order, (0, -most % pieces), constant_values=-1).reshape(pieces, -1)

    def piece(chosen: Array, number: Array) -> Array:
        group = jnp.where(chosen >= 0, place[chosen], count)
        real = (group < count)[:, None]
        rows = tokens[chosen // top]
        rows = jnp.where(real, rows, jnp.zeros((), rows.dtype))
        own = None if key is None else jax.random.fold_in(key, number)
        y = run(rows, jnp.minimum(group, count - 1), own)
        y = y * weights.reshape(-1, 1)[chosen].astype(y.dtype)
        y = jnp.where(real, y, jnp.zeros((), y.dtype))
        return jnp.zeros(tokens.shape, y.dtype).at[chosen // top].add(y)

    if pieces == 1:
        return piece(order[0], jnp.zeros((), jnp.int32))
    there = (place < count).sum() > jnp.arange(pieces) * order.shape[1]
    again = jax.checkpoint(piece)  # what a piece computes is not kept for those left out either

    def add(y: Array, each: tuple[Array, Array, Array]) -> tuple[Array, None]:
        some, chosen, number = each
        return jax.lax.cond(some, lambda: y + again(chosen, number), lambda: y), None

    nothing = jnp.zeros(tokens.shape, jax.eval_shape(piece, order[0], there[0]).dtype)
    return jax.lax.scan(add, nothing, (there, order, jnp.arange(pieces)))[0]
