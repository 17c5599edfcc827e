"""The gradient of a batch that does not fit into memory: some rows of it at a time."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from eqxformer.constraints import constrain
from eqxformer.losses.cross_entropy import Loss
from eqxformer.losses.objective import LossFunction


def accumulated(
    loss: LossFunction, model: Any, batch: Any, *, microbatch: int, key: PRNGKeyArray | None
) -> tuple[Loss, Any]:
    """The loss of a batch and the gradient of its mean, `microbatch` rows at a time.

    Sums over tokens and their weights are added up and divided once, at the end, so that rows of
    unequal token counts weigh as they do in one large batch; rows that are left over are a smaller
    microbatch. Each microbatch has random numbers of its own.

    Raises `TypeError` for a loss that is a scalar: of a mean alone nobody knows how much it weighs;
    `ValueError` for a batch whose arrays have different numbers of rows.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> from eqxformer.training.accumulation import accumulated
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8)
        >>> model = config.build(key=jax.random.key(0))
        >>> batch = ef.TokenBatch(jnp.arange(45).reshape(5, 9))
        >>> loss, gradients = accumulated(ef.NextToken(), model, batch, microbatch=2, key=None)
        >>> float(loss.weight)
        40.0
    """
    rows = _rows(batch)
    full, left = divmod(rows, microbatch)

    def piece(part: Any, number: Any) -> tuple[Any, Loss]:
        own = None if key is None else jax.random.fold_in(key, number)
        gradients, value = eqx.filter_grad(lambda m: _total(loss, m, part, own), has_aux=True)(
            model
        )
        return jax.tree.map(lambda g: g.astype(jnp.float32), gradients), value

    def cut(first: int, last: int) -> Any:
        return jax.tree.map(lambda x: x[first:last] if eqx.is_array(x) else x, batch)

    if not full:
        sums = piece(batch, 0)
    else:
        arrays, fixed = eqx.partition(cut(0, full * microbatch), eqx.is_array)
        parts = jax.tree.map(lambda x: _dealt(jnp.asarray(x), full), arrays)

        def add(sums: Any, given: Any) -> tuple[Any, None]:
            part, number = given
            return _sum(sums, piece(eqx.combine(part, fixed), number)), None

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(lambda part: piece(eqx.combine(part, fixed), 0), first)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        sums, _ = jax.lax.scan(add, nothing, (parts, jnp.arange(full)))
        if left:
            sums = _sum(sums, piece(cut(full * microbatch, rows), full))
    gradients, value = sums
    share = value.per_token(jnp.ones((), jnp.float32))
    like = eqx.filter(model, eqx.is_inexact_array)
    return value, jax.tree.map(lambda g, x: (share * g).astype(x.dtype), gradients, like)


def pieces(
    batch: Any, microbatch: int | None, key: PRNGKeyArray | None
) -> Iterator[tuple[Any, PRNGKeyArray | None]]:
    """The microbatches of a batch, with the keys that `accumulated` gives them."""
    if microbatch is None:
        yield batch, key
        return
    for number, first in enumerate(range(0, _rows(batch), microbatch)):
        rows = slice(first, first + microbatch)
        part = jax.tree.map(lambda x, rows=rows: x[rows] if eqx.is_array(x) else x, batch)
        yield part, None if key is None else jax.random.fold_in(key, number)


def _dealt(x: Array, parts: int) -> Array:
    """Rows in parts, each of them dealt out to all devices of a mesh, which else hold one each."""
    words = ("batch", *("",) * (x.ndim - 1))
    return constrain(x.reshape(parts, -1, *x.shape[1:]), "parts", *words)


def check_microbatch(microbatch: int | None) -> None:
    """Raises `ValueError` for less than a row."""
    if microbatch is not None and microbatch < 1:
        raise ValueError(f"`microbatch` must be at least 1 row, or None; got {microbatch}.")


def check_splits(loss: LossFunction, microbatch: int | None) -> None:
    """Raises `ValueError` for microbatches of a loss whose rows depend on one another."""
    if microbatch is not None and not getattr(loss, "splits", True):
        raise ValueError(
            f"`microbatch` must be None with {type(loss).__name__}, in which every row of a batch "
            f"depends on all others; got {microbatch}. Make the batch itself smaller."
        )


def _total(loss: LossFunction, model: Any, batch: Any, key: PRNGKeyArray | None) -> Any:
    value = loss(model, batch, key=key)
    if not isinstance(value, Loss):
        raise TypeError(
            "With `microbatch`, the loss must be a `Loss`, which keeps sum and weight apart; "
            "got a scalar. Use `NextToken()` or `SequenceToSequence()`."
        )
    return value.total, value


def _sum(one: Any, other: Any) -> Any:
    return jax.tree.map(jnp.add, one, other)


def _rows(batch: Any) -> int:
    arrays = [x for x in jax.tree.leaves(batch) if eqx.is_array(x)]
    rows = {x.shape[0] for x in arrays if x.ndim}
    if len(rows) != 1 or not all(x.ndim for x in arrays):
        raise ValueError(
            f"With `microbatch`, every array of a batch must have a row per sequence as its first "
            f"axis; got {', '.join(sorted(str(x.shape) for x in arrays))}."
        )
    return rows.pop()
