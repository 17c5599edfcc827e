"""Attention maps: for every head, how much each query takes of each key."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array, Float

from eqxformer.inspect.pictures._figures import (
    SHADES,
    check_tokens,
    grid,
    name_tokens,
    panel_size,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def attention(
    weights: Float[Array, "heads seq keys"],
    tokens: Sequence[str] | None = None,
    source: Sequence[str] | None = None,
    *,
    heads: Sequence[int] | None = None,
    title: str | None = None,
) -> "Figure":
    """A panel per head: queries down, keys across, the darker the more of a key is taken.

    All panels have one scale, from zero to the largest weight of them.

    Arguments:
        weights: of one row, as `Attention.weights` or `ef.capture` gives them.
        tokens: the texts of the queries' tokens; numbers if None. Of more than forty, every n-th
            is written.
        source: the texts of the keys' tokens, in cross-attention; those of the queries if None.
        heads: which heads to draw, in this order; all if None.
        title: above the panels.

    Raises `ValueError` for labels that are too many or too few, and for heads that do not exist;
    `ImportError` where matplotlib is not installed.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> part = ef.Attention(8, heads=2, key=jax.random.key(0))
        >>> weights = part.weights(jnp.ones((3, 8)), mask=ef.Causal())
        >>> figure = ef.inspect.pictures.attention(weights, ["a", "b", "c"])
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['head 0', 'head 1']
    """
    values = np.asarray(weights, np.float32)
    chosen = list(range(len(values))) if heads is None else list(heads)
    if not chosen or not set(chosen) <= set(range(len(values))):
        raise ValueError(f"`heads` must be among 0 to {len(values) - 1}; got {chosen}.")
    _, seq, keys = values.shape
    check_tokens("tokens", tokens, seq)
    across = tokens if source is None and keys == seq else source
    check_tokens("source", across, keys)
    figure, panels = grid(len(chosen), panel_size(seq, keys, tokens, across, 0.16))
    most = max(float(values[chosen].max()), 1e-9)
    drawn: Any = None
    for axes, head in zip(panels, chosen, strict=True):
        drawn = axes.imshow(values[head], cmap=SHADES, vmin=0.0, vmax=most, aspect="auto")
        axes.set_title(f"head {head}", fontsize=9)
        name_tokens(axes, "y", seq, tokens)
        name_tokens(axes, "x", keys, across)
    figure.supylabel("query", fontsize=9)
    figure.supxlabel("key", fontsize=9)
    bar = figure.colorbar(drawn, ax=panels, shrink=0.8, aspect=30, pad=0.02)
    bar.set_label("weight", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure
