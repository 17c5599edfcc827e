"""Attention whose scores are many, on a CPU: a piece of them at a time.

What a program holds for the first time costs it a page fault for every four kilobytes, and what it
holds beyond the caches is read from memory again by every operation: a product that writes 100 MB
of scores reaches 40% of the speed of one that writes ten times 10 MB in the same place. Scores are
therefore made in a loop, and made again for the gradient instead of being kept.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

MANY, PIECE = 2**24, 2**22  # bytes of scores: from which on it pays, and of a piece

Operands = dict[str, Any]
Sums = tuple[Array, Array]
Run = Callable[[Operands], Sums]


def are_many(query: Array, keys: Array) -> bool:
    """Whether the scores of these queries and keys are better made in pieces."""
    return 4 * math.prod(query.shape[:-1]) * keys.shape[-2] > MANY


def in_pieces(
    sums: Callable[..., Sums],
    query: Array,
    keys: Array,
    values: Array,
    allowed: Array | None,
    bias: Array | None,
    scoring: Any,
    key: PRNGKeyArray | None,
) -> Sums:
    """`sums` of the other arguments, called for a few rows, heads or queries at a time.

    It gives the values by the powers of their scores, and the sums of the powers, both for every
    query. Their division is for the caller: it is part of the gradient, and in a piece it would
    make the gradient multiply the values once more.

    As many heads and rows are taken at once as fill a piece; a head that needs more than one is
    taken some queries at a time.
    """
    *batch, heads, seq, head_dim = query.shape
    kv_heads, length = keys.shape[-3:-1]
    groups = heads // kv_heads
    given = _merged(
        {
            "query": query.reshape(-1, kv_heads, groups, seq, head_dim),
            "keys": _by_head(keys, batch, kv_heads, 1),
            "values": _by_head(values, batch, kv_heads, 1),
            "allowed": _by_head(allowed, batch, kv_heads, groups),
            "bias": _by_head(bias, batch, kv_heads, groups),
            "sinks": None
            if scoring.sinks is None
            else scoring.sinks.reshape(1, kv_heads, groups, 1, 1),
        }
    )
    rows, together = given["query"].shape[:2]
    head = 4 * groups * seq * length  # bytes of the scores that share a head of keys
    size = -(-seq // -(-head // PIECE))  # queries of a piece
    parts = -(-seq // size)
    run = _piece(sums, scoring)
    if parts > 1:
        run = _queries(run, seq, size)
    if one_by_one := head * together > PIECE:
        run = _over_first(run, together, PIECE // head)
    if key is not None:
        given["key"] = jax.random.split(_typed(key), (rows, together if one_by_one else 1, parts))
    mixed, total = _over_first(run, rows, PIECE // (head * together))(given)
    return mixed.reshape(*batch, heads, seq, -1), total.reshape(*batch, heads, seq, 1)


def _typed(key: PRNGKeyArray) -> PRNGKeyArray:
    """A key as one element, also where it is given as the numbers that it is made of."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _piece(sums: Callable[..., Sums], scoring: Any) -> Run:
    """A piece: every axis in front of the queries is an axis of heads."""

    @jax.checkpoint
    def run(given: Operands) -> Sums:
        lead = given["query"].shape[:-2]
        sinks, key = given["sinks"], given.get("key")
        mixed, total = sums(
            _flat(given["query"], lead),
            _flat(given["keys"], given["keys"].shape[:-2]),
            _flat(given["values"], given["values"].shape[:-2]),
            _flat(given["allowed"], lead),
            _flat(given["bias"], lead),
            scoring if sinks is None else dataclasses.replace(scoring, sinks=sinks.reshape(-1)),
            None if key is None else key.reshape(()),
        )
        return mixed.reshape(*lead, *mixed.shape[-2:]), total.reshape(*lead, *total.shape[-2:])

    return run


def _queries(run: Run, seq: int, size: int) -> Run:
    """`run` for `size` queries at a time, filled up with queries that see nothing."""
    count = -(-seq // size)

    def cut(x: Array | None) -> Array | None:
        if x is None or x.shape[-2] != seq:
            return None if x is None else x[None]
        pads = [(0, 0)] * (x.ndim - 2) + [(0, count * size - seq), (0, 0)]
        x = jnp.pad(x, pads).reshape(*x.shape[:-2], count, size, x.shape[-1])
        return jnp.moveaxis(x, -3, 0)

    def join(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, -3)
        return x.reshape(*x.shape[:-3], count * size, -1)[..., :seq, :]

    def every(given: Operands) -> Sums:
        cuts = {name: cut(given[name]) for name in ("query", "allowed", "bias")}
        same = {
            n: None if (x := given[n]) is None else x[None] for n in ("keys", "values", "sinks")
        }
        mixed, total = _over_first(run, count, 1)({**given, **cuts, **same})
        return join(mixed), join(total)

    return every


def _over_first(run: Run, count: int, most: int) -> Run:
    """`run` for each index of the first axis, at most so many at once.

    An operand whose axis has a single index is the same for all of them.
    """

    def every(given: Operands) -> Sums:
        there = {name: x for name, x in given.items() if x is not None}
        moving = {name: x for name, x in there.items() if x.shape[0] == count > 1}
        still = {**given, **{n: x[0] for n, x in there.items() if n not in moving}}
        if not moving:
            mixed, total = run(still)
            return mixed[None], total[None]
        at_once = max((n for n in range(1, most + 1) if count % n == 0), default=1)
        batch_size = at_once if at_once > 1 else None
        return jax.lax.map(lambda some: run(still | some), moving, batch_size=batch_size)

    return every


def _by_head(x: Array | None, batch: list[int], kv_heads: int, groups: int) -> Array | None:
    """[rows or 1, kv_heads or 1, groups or 1, ...] of an array that has such axes or one of 1."""
    if x is None:
        return None
    *lead, heads, seq, size = x.shape
    if math.prod(lead) > 1:
        x = jnp.broadcast_to(x, (*batch, heads, seq, size))
    return x.reshape(-1, *((1, 1) if heads == 1 else (kv_heads, groups)), seq, size)


def _merged(given: Operands) -> Operands:
    """One row of more heads, where nothing tells rows from heads: a loop less."""
    axes = given["query"].shape[:2]
    if any(x is not None and x.shape[:2] not in (axes, (1, 1)) for x in given.values()):
        return given
    return {
        name: None if x is None else x.reshape(1, -1, *x.shape[2:]) for name, x in given.items()
    }


def _flat(x: Array | None, lead: tuple[int, ...]) -> Array | None:
    """One axis of heads, of an array that has the axes of `lead`, or of a single index."""
    if x is None:
        return None
    if math.prod(x.shape[:-2]) == 1:
        return x.reshape(1, *x.shape[-2:])
    return jnp.broadcast_to(x, (*lead, *x.shape[-2:])).reshape(-1, *x.shape[-2:])
