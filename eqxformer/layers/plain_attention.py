"""The formula of attention, `softmax(q k^T scale + bias) v`, in blocks of queries.

A query that may not look ahead, or only so far, leaves whole rectangles of scores that nobody
asks for. Queries are therefore taken in blocks, each with the keys that any of its queries can see:
with four blocks, a causal model makes, and keeps for its gradient, 5/8 of the scores.
"""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from eqxformer.constraints import mesh_sizes
from eqxformer.layers.dropout import dropout
from eqxformer.layers.masks import Causal, Mask, Window, of_kind
from eqxformer.layers.norms import wide_dtype, widen
from eqxformer.layers.score_pieces import are_many, in_pieces

SHORTEST_BLOCK, MOST_BLOCKS = 128, 4  # more gain a twentieth and take twice as long to compile


class Scoring(eqx.Module):
    """How scores are made: `softcap * tanh(scale * q k / softcap)`, then bias, mask and sinks.

    Arguments:
        scale: factor of the products; `1 / sqrt(head_dim)` in most models.
        softcap: bound of the scores (Gemma 2), or None.
        dropout: probability of dropping a weight.
        sinks: a logit per head that takes part in the softmax but has no value (gpt-oss).

    Example:
        >>> import eqxformer as ef
        >>> scoring = ef.Scoring(scale=64**-0.5, softcap=50.0)
        >>> scoring.scale, scoring.softcap, scoring.sinks
        (0.125, 50.0, None)
    """

    scale: float = eqx.field(static=True)
    softcap: float | None = eqx.field(static=True, default=None)
    dropout: float = eqx.field(static=True, default=0.0)
    sinks: Float[Array, " heads"] | None = None


class Block(NamedTuple):
    """A range of queries, and the range of keys that they can see at most; ends are excluded."""

    query: slice
    keys: slice


def plain_attention(
    query: Float[Array, "*batch heads seq head_dim"],
    keys: Float[Array, "*#batch kv_heads keys head_dim"],
    values: Float[Array, "*#batch kv_heads keys value_dim"],
    *,
    scoring: Scoring,
    mask: Mask | None = None,
    places: tuple[Int[Array, "*#batch seq"], Int[Array, "*#batch keys"]] | None = None,
    bias: Float[Array, "*#batch heads seq keys"] | None = None,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "*batch heads seq value_dim"]:
    """Each query's average of the values; arguments as in `attend`."""
    seq, length = query.shape[-2], keys.shape[-2]
    allowed = allowed_array(mask, places, seq, length)
    found = (
        blocks(mask, seq, length) if places is None else [Block(slice(0, seq), slice(0, length))]
    )
    results = []
    for i, (rows, columns) in enumerate(found):
        results.append(
            _mixed(
                query[..., rows, :],
                keys[..., columns, :],
                values[..., columns, :],
                None if allowed is None else allowed[..., rows, columns],
                None if bias is None else bias[..., rows, columns],
                scoring,
                key if key is None or len(found) == 1 else jax.random.fold_in(key, i),
            )
        )
    return results[0] if len(found) == 1 else jnp.concatenate(results, axis=-2)


def blocks(mask: Mask | None, seq: int, keys: int) -> list[Block]:
    """The blocks of queries whose keys are worth telling apart, by what `mask` can never allow.

    Example:
        >>> import eqxformer as ef
        >>> from eqxformer.layers.plain_attention import blocks
        >>> [(b.query.stop, b.keys.stop) for b in blocks(ef.Causal(), 512, 512)]
        [(128, 128), (256, 256), (384, 384), (512, 512)]
    """
    windows = of_kind(mask, Window)
    behind = min((p.left for p in windows), default=keys)
    ahead = min((p.right for p in windows), default=keys)
    if of_kind(mask, Causal):
        ahead = 0
    cut = "sequence" in mesh_sizes()  # a block of queries would be all on one device
    if seq != keys or min(ahead, behind) >= keys or cut:
        return [_whole(seq, keys)]
    size = SHORTEST_BLOCK * -(-seq // (SHORTEST_BLOCK * MOST_BLOCKS))
    ends = [(first, min(first + size, seq)) for first in range(0, seq, size)]
    return [
        Block(slice(first, last), slice(max(first - behind, 0), min(last + ahead, keys)))
        for first, last in ends
    ]


def _whole(seq: int, keys: int) -> Block:
    return Block(slice(0, seq), slice(0, keys))


def attention_weights(
    query: Float[Array, "*batch heads seq head_dim"],
    keys: Float[Array, "*#batch kv_heads keys head_dim"],
    *,
    scoring: Scoring,
    mask: Mask | None = None,
    places: tuple[Int[Array, "*#batch seq"], Int[Array, "*#batch keys"]] | None = None,
    bias: Float[Array, "*#batch heads seq keys"] | None = None,
) -> Float[Array, "*batch heads seq keys"]:
    """The weight of every key for every head and query, in float32; arguments as in `attend`.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> x = jnp.ones((1, 2, 4))  # one head, two tokens that are alike
        >>> ef.attention_weights(x, x, scoring=ef.Scoring(scale=0.5), mask=ef.Causal()).tolist()
        [[[1.0, 0.0], [0.5, 0.5]]]
    """
    allowed = allowed_array(mask, places, query.shape[-2], keys.shape[-2])
    return shares(*powers_of(scores_of(query, keys, scoring, bias), allowed, scoring.sinks))


def shares(
    powers: Float[Array, "*batch heads seq keys"], total: Float[Array, "*batch heads seq 1"]
) -> Float[Array, "*batch heads seq keys"]:
    """`powers / total`; zeros for a query that may look at nothing."""
    return powers / jnp.where(total == 0.0, 1.0, total)


def allowed_array(
    mask: Mask | None,
    places: tuple[Int[Array, "*#batch seq"], Int[Array, "*#batch keys"]] | None,
    seq: int,
    keys: int,
) -> Bool[Array, "*#batch #heads #seq keys"] | None:
    """The array that a mask describes; None for one that allows everything."""
    if places is None:
        return None if mask is None else mask.allows(jnp.arange(seq), jnp.arange(keys))
    filled = (places[1] >= 0)[..., None, None, :]
    if mask is None:
        return filled
    allowed = mask.allows(*places)
    shape = jnp.broadcast_shapes(allowed.shape, filled.shape)
    return jnp.broadcast_to(allowed, shape) & jnp.broadcast_to(filled, shape)


def _mixed(
    query: Array,
    keys: Array,
    values: Array,
    allowed: Array | None,
    bias: Array | None,
    scoring: Scoring,
    key: PRNGKeyArray | None,
) -> Array:
    """One block: the values by the powers of their scores, divided by the sum of the powers."""
    given = (query, keys, values, allowed, bias, scoring, key)
    if are_many(query, keys):
        mixed, total = jax.lax.platform_dependent(
            *given, cpu=partial(in_pieces, _sums), default=_sums
        )
    else:
        mixed, total = _sums(*given)
    return (mixed / jnp.where(total == 0.0, 1.0, total)).astype(values.dtype)


def _sums(
    query: Array,
    keys: Array,
    values: Array,
    allowed: Array | None,
    bias: Array | None,
    scoring: Scoring,
    key: PRNGKeyArray | None,
) -> tuple[Array, Array]:
    powers, total = powers_of(scores_of(query, keys, scoring, bias), allowed, scoring.sinks)
    return mix(dropout(powers, scoring.dropout, key), values), total


def mix(
    weights: Float[Array, "*batch heads seq keys"],
    values: Float[Array, "*#batch kv_heads keys value_dim"],
) -> Float[Array, "*batch heads seq value_dim"]:
    """The sum of the values by these weights, in the type of the weights."""
    *batch, heads, seq, length = weights.shape
    kv_heads = values.shape[-3]
    grouped = weights.astype(values.dtype)
    grouped = grouped.reshape(*batch, kv_heads, heads // kv_heads * seq, length)
    mixed = jnp.matmul(grouped, values, preferred_element_type=weights.dtype)
    return mixed.reshape(*batch, heads, seq, values.shape[-1])


def scores_of(
    query: Float[Array, "*batch heads seq head_dim"],
    keys: Float[Array, "*#batch kv_heads keys head_dim"],
    scoring: Scoring,
    bias: Float[Array, "*#batch heads seq keys"] | None,
) -> Float[Array, "*batch heads seq keys"]:
    """The scores with their bias, in float32, before masks."""
    *batch, heads, seq, head_dim = query.shape
    kv_heads = keys.shape[-3]
    groups = query.reshape(*batch, kv_heads, heads // kv_heads * seq, head_dim)
    wide = wide_dtype(query)
    scores = jnp.matmul(groups, jnp.swapaxes(keys, -1, -2), preferred_element_type=wide)
    scores = scores.reshape(*batch, heads, seq, keys.shape[-2]) * scoring.scale
    if scoring.softcap is not None:
        scores = scoring.softcap * jnp.tanh(scores / scoring.softcap)
    if bias is not None:
        scores = scores + jnp.broadcast_to(widen(bias), scores.shape).astype(scores.dtype)
    return scores


def powers_of(
    scores: Float[Array, "*batch heads seq keys"],
    allowed: Bool[Array, "*#batch #heads #seq keys"] | None,
    sinks: Float[Array, " heads"] | None,
) -> tuple[Float[Array, "*batch heads seq keys"], Float[Array, "*batch heads seq 1"]]:
    """`exp(score - largest)`, and its sum over keys and sink; both 0 where no key is allowed."""
    if allowed is not None:
        scores = jnp.where(jnp.broadcast_to(allowed, scores.shape), scores, -jnp.inf)
    top = scores.max(-1, keepdims=True, initial=-jnp.inf)
    if sinks is not None:
        sink = jnp.broadcast_to(widen(sinks)[:, None, None], top.shape).astype(scores.dtype)
        top = jnp.maximum(top, sink)
    top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0.0, top))
    powers = jnp.exp(scores - top)
    total = powers.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(sink - top)  # pyright: ignore[reportPossiblyUnboundVariable]
    return powers, total
