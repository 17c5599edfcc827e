"""Attention of which single values are asked for by name; see `taps`."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float, Int, PRNGKeyArray

from eqxformer.layers.dropout import dropout
from eqxformer.layers.masks import Mask
from eqxformer.layers.plain_attention import (
    Scoring,
    allowed_array,
    mix,
    powers_of,
    scores_of,
    shares,
)
from eqxformer.layers.taps import is_changed, is_tapped, tap

ATTENTION_SITES = ("queries", "keys", "values", "scores", "weights", "heads")


def tapped_attention(
    attend: Callable[..., Array],
    part: Any,
    query: Float[Array, "*batch heads seq head_dim"],
    keys: Float[Array, "*#batch kv_heads keys head_dim"],
    values: Float[Array, "*#batch kv_heads keys value_dim"],
    scoring: Scoring,
    mask: Mask | None,
    places: tuple[Int[Array, "*#batch seq"], Int[Array, "*#batch keys"]] | None,
    bias: Float[Array, "*#batch heads seq keys"] | None,
    key: PRNGKeyArray | None,
) -> Float[Array, "*batch heads seq value_dim"]:
    """What `attend` gives, with each of `ATTENTION_SITES` offered to the taps of `part`.

    Weights that are only looked at are made beside the kernel, whose result is that of a plain run.
    Where they, or the scores, are replaced, the result is made from them: equal to rounding, and
    with dropout of one draw for all of them.
    """
    query, keys = tap(part, "queries", query), tap(part, "keys", keys)
    values = tap(part, "values", values)
    if not is_tapped(part, "scores", "weights"):
        weights = None
    else:
        scores = tap(part, "scores", scores_of(query, keys, scoring, bias))
        allowed = allowed_array(mask, places, query.shape[-2], keys.shape[-2])
        weights = tap(part, "weights", shares(*powers_of(scores, allowed, scoring.sinks)))
    if weights is not None and is_changed(part, "scores", "weights"):
        y = mix(dropout(weights, scoring.dropout, key), values).astype(values.dtype)
    else:
        options = {"scoring": scoring, "mask": mask, "places": places, "bias": bias}
        y = attend(query, keys, values, **options, key=key)
    return tap(part, "heads", y)
