"""Cross-entropy of hidden states, a chunk of tokens at a time.

The logits of a batch are often the largest array of a training step: 8192 tokens times 50,257
entries are 1.6 GB, and their gradient is as large. Here the logits of one chunk exist at a time,
and are gone once its loss and gradients are known.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jaxtyping import Array, Float, Int

from eqxformer.constraints import token_shares
from eqxformer.data.batches import check_weights_shape
from eqxformer.layers.norms import wide_dtype, widen
from eqxformer.layers.product import unfused
from eqxformer.layers.taps import is_collecting
from eqxformer.losses.cross_entropy import (
    Loss,
    Weights,
    check_share,
    check_targets,
    cross_entropy,
    wide_ids,
)

# Batches with more logits than these go through chunks: 16 MB of them in float32. Fewer are cheaper
# at once (benchmarks/cross_entropy.py).
LARGE = 2**22
SEEN = 2**28  # a gigabyte: where somebody looks at what is in a head, of which chunks show nothing
# Tokens of a chunk, on a CPU and elsewhere. Every chunk is added to the head's gradient, an array
# as large as the head; a GPU makes many products in that time, a CPU few.
CPU_CHUNK, CHUNK = 512, 2048

Head = Callable[[Float[Array, "*batch dim"]], Float[Array, "*batch vocab"]]


class Parts(NamedTuple):
    """The weighted sum of a loss, and its derivatives: trees like what they belong to, or None."""

    total: Float[Array, ""]
    hidden: Any
    weights: Any
    head: Any


def cross_entropy_of(
    hidden: Float[Array, "*batch dim"],
    head: Head,
    targets: Int[Array, "*batch"],
    *,
    weights: Weights | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> Loss:
    """`cross_entropy(head(hidden), targets)`, without ever holding the logits of all tokens.

    Memory beyond inputs and gradients is that of the logits of one chunk. The gradients are formed
    with the loss: `softmax - one_hot` of a chunk goes back through the head while it is there, so
    that no logits are computed twice. Derivatives of any order and direction are those of the plain
    form.

    Arguments:
        hidden: what the head maps to logits.
        head: maps the last axis of any array to logits, each place by itself: `model.logits`, or a
            function of your own. Arrays that it closes over get their gradients.
        targets, weights, label_smoothing, z_loss: as in `cross_entropy`.
        chunk: tokens whose logits exist at a time. If None, 512 on a CPU and 2048 elsewhere, for
            each device that has tokens of its own, or all of them where there are no more than 4
            million logits.

    Returns a `Loss`. Raises `ValueError` as `cross_entropy` does, and for a head that does not give
    scores for each place.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> head = ef.Linear(8, 1000, key=jax.random.key(0))
        >>> hidden, targets = jnp.ones((2, 6, 8)), jnp.arange(12).reshape(2, 6)
        >>> loss = ef.cross_entropy_of(hidden, head, targets, chunk=4)
        >>> bool(jnp.isclose(loss.mean, ef.cross_entropy(head(hidden), targets).mean))
        True
    """
    check_share("label_smoothing", label_smoothing)
    if chunk is not None and chunk < 1:
        raise ValueError(f"`chunk` must be at least 1 token; got {chunk}.")
    scores = eqx.filter_eval_shape(head, hidden)
    if scores.shape[:-1] != targets.shape:
        raise ValueError(
            "`head` must give scores for each of `targets`; got logits of shape "
            f"{scores.shape} for targets of shape {targets.shape}."
        )
    if chunk is None and scores.size <= (SEEN if is_collecting() else LARGE):
        options = {"label_smoothing": label_smoothing, "z_loss": z_loss}
        return cross_entropy(head(hidden), targets, weights=weights, **options)
    if weights is None:
        weights = jnp.ones(targets.shape, jnp.float32)
    check_weights_shape(weights.shape, targets.shape)
    weights, targets = weights.astype(jnp.float32), wide_ids(targets)
    check_targets(targets, weights != 0, scores.shape[-1])
    settings = _Settings(label_smoothing, z_loss)
    total = _total(head, hidden, targets, weights, settings, chunk)
    return Loss(total, jnp.sum(weights))


class _Settings(NamedTuple):
    label_smoothing: float
    z_loss: float


@eqx.filter_jit
def _total(
    head: Head,
    hidden: Array,
    targets: Array,
    weights: Array,
    settings: _Settings,
    chunk: int | None,
) -> Array:
    """The weighted sum, in chunks of so many tokens, or as many as each device wants."""
    of, shares = functools.partial(_total_in_chunks, head, settings), token_shares()
    if chunk is not None:
        return of(chunk, hidden, targets, weights)
    small, large = (functools.partial(of, shares * each) for each in (CPU_CHUNK, CHUNK))
    return jax.lax.platform_dependent(hidden, targets, weights, cpu=small, default=large)


def _total_in_chunks(
    head: Head, settings: _Settings, chunk: int, hidden: Array, targets: Array, weights: Array
) -> Array:
    """The weighted sum, differentiated by multiplying with gradients that are formed along with it.

    That rule is linear in what it multiplies, so that JAX can run it forwards and backwards.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    count = chunk_count(rows.shape[0], chunk)
    one = jax.eval_shape(lambda x: dealt_out(x, count)[0], rows)
    program = jax.make_jaxpr(head)(one)  # its constants are the arrays that the head reads
    learned, known = eqx.partition(program.consts, eqx.is_inexact_array)
    sums = functools.partial(_sums, program.jaxpr, settings, count)
    arrays = (rows, weights.reshape(-1), learned, targets.reshape(-1), known)

    @jax.custom_jvp
    def total(*arrays: Any) -> Array:
        return sums((False, False, False), *arrays).total

    def derivative(
        arrays: tuple[Any, ...], changes: tuple[Any, ...]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        wanted = (_moves(changes[0]), _moves(changes[1]), _moves(changes[2]))
        parts = sums(wanted, *arrays)
        slope = jnp.zeros_like(parts.total)
        for asked, gradients, change in zip(wanted, parts[1:], changes[:3], strict=True):
            slope = slope + _product(gradients, change) if asked else slope
        return parts.total, slope

    total.defjvp(derivative, symbolic_zeros=True)
    return total(*arrays)


def _sums(
    program: Jaxpr,
    settings: _Settings,
    count: int,
    wanted: tuple[bool, bool, bool],
    rows: Float[Array, "rows dim"],
    weights: Float[Array, " rows"],
    learned: Any,
    targets: Int[Array, " rows"],
    known: Any,
) -> Parts:
    """The sum over so many chunks in turn, with the gradients that are wanted."""

    def step(carry: tuple[Array, Any], each: tuple[Array, ...]) -> tuple[Any, Any]:
        rows, weights, targets = each
        head = (program, learned, known)
        parts = _chunk(head, settings, wanted, rows, weights, targets)
        total, gradient = carry
        gradient = jax.tree.map(lambda a, b: a + widen(b), gradient, parts.head)
        return (total + parts.total, gradient), (parts.hidden, parts.weights)

    zero = jnp.zeros((), jnp.float32)
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, wide_dtype(x)), learned)
    start = (zero, empty if wanted[2] else None)
    each = tuple(dealt_out(x, count) for x in (rows, weights, targets))
    (total, head), others = jax.lax.scan(step, start, each)
    hidden, of_weights = jax.tree.map(lambda x: _joined(x, rows.shape[0]), others)
    return Parts(total, hidden, of_weights, head)


def _chunk(
    head: tuple[Jaxpr, Any, Any],
    settings: _Settings,
    wanted: tuple[bool, bool, bool],
    rows: Float[Array, "rows dim"],
    weights: Float[Array, " rows"],
    targets: Int[Array, " rows"],
) -> Parts:
    """The sum over one chunk, with the gradients that are wanted.

    The logits' is `weight * (softmax * (1 + 2 z_loss * lse) - (1 - e) * one_hot - e / vocab)`.
    """
    program, learned, known = head
    counted = weights != 0

    def scores(learned: Any, rows: Array) -> Array:
        read = ClosedJaxpr(program, eqx.combine(learned, known))
        return jaxpr_as_fun(read)(rows)[0]

    # Where the weight is 0 nothing may matter, not even as NaN, and 0 x NaN is NaN. The zeros are
    # the weights themselves: JAX would store a constant, as large as a chunk, beside the loop. They
    # have no derivative by the weights, or second derivatives would hold what was left out.
    real, zero = counted[:, None], jax.lax.stop_gradient(weights)[:, None]
    rows = jnp.where(real, rows, zero.astype(rows.dtype))
    logits, back = jax.vjp(scores, learned, rows)
    wide, vocab = logits.astype(jnp.float32), logits.shape[-1]
    log_sum = _log_sum(wide)
    share, z_loss = settings.label_smoothing, settings.z_loss
    loss = log_sum - (1.0 - share) * _at(wide, targets, counted)
    loss = loss - share * wide.mean(axis=-1) if share else loss
    loss = loss + z_loss * jnp.square(log_sum) if z_loss else loss
    loss = jnp.where(counted, loss, math.log(vocab) + z_loss * math.log(vocab) ** 2)
    total, of_weights = jnp.sum(weights * loss), loss if wanted[1] else None
    if not (wanted[0] or wanted[2]):
        return Parts(total, None, of_weights, None)
    slope = (1.0 + 2.0 * z_loss * log_sum)[:, None] * jnp.exp(wide - log_sum[:, None])
    slope = slope - (1.0 - share) * _one_hot(targets, vocab)
    slope = slope - share / vocab if share else slope
    slope = jnp.where(real, weights[:, None] * slope, zero)
    of_head, of_rows = back(slope.astype(logits.dtype))
    of_rows = jnp.where(real, of_rows, zero.astype(rows.dtype))
    return Parts(total, of_rows if wanted[0] else None, of_weights, of_head if wanted[2] else None)


def _log_sum(logits: Array) -> Array:
    """`log(sum(exp(logits)))` of every row; on a CPU, the powers are not left to a slow library."""
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    return jnp.log(unfused(jnp.exp(logits - top)).sum(-1)) + top[:, 0]


def _at(logits: Array, targets: Array, counted: Array) -> Array:
    """`logits[target]`, which few numbers of a chunk take part in; NaN outside the vocabulary."""
    inside = (targets >= 0) & (targets < logits.shape[-1])
    ids = jnp.where(inside, targets, 0)[:, None]
    picked = jnp.take_along_axis(logits, ids, axis=-1)[:, 0]
    return jnp.where(counted, jnp.where(inside, picked, jnp.nan), 0.0)


def _one_hot(targets: Int[Array, " rows"], vocab: int) -> Array:
    """Where the target is. The ids depend on the chunk, or they would be stored for all chunks."""
    ids, targets = jax.lax.optimization_barrier((jnp.arange(vocab, dtype=jnp.int32), targets))
    return (ids[None, :] == targets.astype(jnp.int32)[:, None]).astype(jnp.float32)


def chunk_count(rows: int, chunk: int) -> int:
    """How many chunks of at most so many rows: if it can be, so many that none is left over."""
    least = max(-(-rows // chunk), 1)
    return next((n for n in range(least, 2 * least) if rows % n == 0), least)


def dealt_out(x: Array, count: int) -> Array:
    """Rows dealt out to chunks: from each of several devices, a chunk gets equally many."""
    rows = -(-x.shape[0] // count)
    filled = jnp.pad(x, [(0, rows * count - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
    return jnp.moveaxis(filled.reshape(rows, count, *x.shape[1:]), 1, 0)


def _joined(x: Array, rows: int) -> Array:
    """The rows of all chunks as they were."""
    count, each = x.shape[:2]
    return jnp.moveaxis(x, 0, 1).reshape(count * each, *x.shape[2:])[:rows]


def _moves(changes: Any) -> bool:
    """Whether any array of a tree may change."""
    return not all(isinstance(change, SymbolicZero) for change in jax.tree.leaves(changes))


def _product(gradients: Any, changes: Any) -> Float[Array, ""]:
    """The inner product of two trees, in float32; what does not change is left out."""
    pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(changes), strict=True)
    moving = [(g, c) for g, c in pairs if not isinstance(c, SymbolicZero)]
    products = (jnp.sum(widen(g) * widen(c)).astype(jnp.float32) for g, c in moving)
    return sum(products, jnp.zeros((), jnp.float32))
