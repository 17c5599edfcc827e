"""The gradient of a batch some rows at a time: to need less memory, or, on a CPU, less time."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from eqxformer.checkpoints.names import is_array
from eqxformer.constraints import constrain
from eqxformer.losses.cross_entropy import Loss
from eqxformer.losses.objective import LossFunction
from eqxformer.losses.tokens import objective_of
from eqxformer.training.heaps import programs_are_kept

LEAST_TOKENS, MOST_TOKENS = 128, 1024  # of a piece
WEIGHTS_PER_TOKEN = 100_000  # every piece reads and writes the gradients of all weights


class SeenTogether(Exception):
    """A loss measures what the rows of a batch have in common."""


def accumulated(
    loss: LossFunction,
    model: Any,
    batch: Any,
    *,
    microbatch: int,
    key: PRNGKeyArray | None,
    exactly: bool = False,
) -> tuple[Loss, Any]:
    """The loss of a batch and the gradient of its mean, `microbatch` rows at a time.

    Sums over tokens and their weights are added up and divided once, at the end, so that rows of
    unequal token counts weigh as they do in one large batch; rows that are left over are a smaller
    microbatch. Each microbatch has random numbers of its own.

    Raises `TypeError` for a loss that is a scalar: of a mean alone nobody knows how much it weighs;
    `ValueError` for a batch whose arrays have different numbers of rows. With `exactly`, raises
    `SeenTogether` for a loss with penalties, which are of a batch as a whole.

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
    arrays, fixed = eqx.partition(batch, eqx.is_array)

    @jax.jit  # traced once, for the shapes and for the loop
    def piece(part: Any, number: Any) -> tuple[Any, Loss]:
        own = None if key is None else jax.random.fold_in(key, number)
        given = eqx.combine(part, fixed)
        gradients, value = eqx.filter_grad(lambda m: _total(loss, m, given, own), has_aux=True)(
            model
        )
        if exactly and value.penalties:
            raise SeenTogether(value.penalties)
        return jax.tree.map(lambda g: g.astype(jnp.float32), gradients), value

    def cut(first: int, last: int) -> Any:
        return jax.tree.map(lambda x: x[first:last], arrays)

    if microbatch >= rows:
        sums = piece(arrays, 0)
    else:
        parts = jax.tree.map(lambda x: _dealt(jnp.asarray(x), full), cut(0, full * microbatch))

        def add(sums: Any, given: Any) -> tuple[Any, None]:
            return _sum(sums, piece(*given)), None

        each = parts, jnp.arange(full)
        shapes = jax.eval_shape(lambda each: piece(*jax.tree.map(lambda x: x[0], each)), each)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        sums, _ = jax.lax.scan(add, nothing, each)
        if left:
            sums = _sum(sums, piece(cut(full * microbatch, rows), full))
    gradients, value = sums
    share = value.per_token(jnp.ones((), jnp.float32))
    like = eqx.filter(model, eqx.is_inexact_array)
    return value, jax.tree.map(lambda g, x: (share * g).astype(x.dtype), gradients, like)


def rows_at_once(loss: LossFunction, model: Any, batch: Any) -> int | None:
    """How many rows' gradients a CPU makes at once, given the part of a model that is trained.

    None for all. Of what a step keeps for its gradients, the system hands over anew for every step
    what is beyond some 60 MB (`heaps`), page by page, each emptied first. Some rows at a time need
    a part of it, again and again. So it is where rows are known not to depend on one another:
    with an `Objective` that splits, or `next_token_loss` and the like, and with a batch whose
    arrays all have a row per sequence and which tells its `token_count`, as the library's do.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> from eqxformer.training.accumulation import rows_at_once
        >>> model = ef.shapes(ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=64))
        >>> rows_at_once(ef.NextToken(), model, ef.TokenBatch(jnp.zeros((60, 65), int)))
        15
    """
    objective = objective_of(loss)
    if objective is None or not objective.splits:
        return None
    shapes = [x.shape for x in jax.tree.leaves(batch) if eqx.is_array(x)]
    firsts = {shape[:1] for shape in shapes}
    lengths = {n for shape in shapes for n in shape[1:]}
    if len(firsts) != 1 or not lengths:
        return None
    (rows,) = firsts.pop()
    if rows in lengths and any(len(shape) == 1 for shape in shapes):
        return None  # of these nobody knows whether they are one per row or one per token
    weights = sum(x.size for x in jax.tree.leaves(model) if is_array(x))
    return few_rows(rows, getattr(batch, "token_count", 0) / rows, weights)


def few_rows(rows: int, tokens: float, weights: int) -> int | None:
    """As many rows of so many tokens each as `rows_at_once` takes; None for all.

    As many tokens as a piece has are not divided, or half as many where a step's temporaries are
    one piece of memory, of which the process keeps less (`heaps`).
    """
    worthwhile = weights / WEIGHTS_PER_TOKEN
    if rows * tokens <= max(MOST_TOKENS / 2 if programs_are_kept() else MOST_TOKENS, worthwhile):
        return None
    fitting = max(1, min(rows // 2, int(max(MOST_TOKENS, worthwhile) / tokens)))
    best = next(n for n in range(fitting, 0, -1) if rows % n == 0)
    least = max(LEAST_TOKENS, worthwhile / 4)
    return best if best < rows and best * tokens >= least else None


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
