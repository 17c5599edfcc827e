"""Masks as pictures: a dark square where a query may look at a key."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from eqxformer.inspect.pictures._figures import check_tokens, grid, name_tokens, panel_size
from eqxformer.layers.masks import Mask, parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ALLOWED, _HIDDEN, _BETWEEN = "#33658f", "#f1f3f5", "#ffffff"


def mask(
    description: Mask,
    seq: int,
    keys: int | None = None,
    *,
    tokens: Sequence[str] | None = None,
    source: Sequence[str] | None = None,
    title: str | None = None,
) -> "Figure":
    """Queries down, keys across, a dark square for an allowed look; a panel per row and head.

    Arguments:
        description: any mask, several joined with `&` too.
        seq, keys: how many queries and keys; as many keys as queries if None.
        tokens, source: texts of the queries' and the keys' tokens; numbers if None.
        title: above the picture; the names of the descriptions if None.

    Raises `ValueError` for labels that are too many or too few, and for a mask of another length;
    `ImportError` where matplotlib is not installed.

    Example:
        >>> import eqxformer as ef
        >>> figure = ef.inspect.pictures.mask(ef.Window(2, 0) & ef.Causal(), 6)
        >>> figure.get_suptitle()
        'Window(2, 0) & Causal'
    """
    keys = seq if keys is None else keys
    check_tokens("tokens", tokens, seq)
    across = tokens if source is None and keys == seq else source
    check_tokens("source", across, keys)
    allowed = np.asarray(description.allows(jnp.arange(seq), jnp.arange(keys)))
    each = np.broadcast_to(allowed, (*allowed.shape[:-2], seq, keys))
    titles = _titles(each.shape[:-2])
    figure, panels = grid(len(titles), panel_size(seq, keys, tokens, across, 0.2))
    for axes, name, shown in zip(panels, titles, each.reshape(-1, seq, keys), strict=True):
        _draw(axes, shown)
        axes.set_title(name, fontsize=8)
        name_tokens(axes, "y", seq, tokens)
        name_tokens(axes, "x", keys, across)
    figure.supylabel("query", fontsize=9)
    figure.supxlabel("key", fontsize=9)
    name = " & ".join(map(_name, parts(description))) if title is None else title
    figure.suptitle(name, fontsize=10)
    return figure


def _draw(axes: Any, allowed: np.ndarray) -> None:
    from matplotlib.colors import ListedColormap

    seq, keys = allowed.shape
    colours = ListedColormap([_HIDDEN, _ALLOWED])
    lines = {"edgecolors": _BETWEEN, "linewidth": 0.6} if max(seq, keys) <= 60 else {}
    across, down = np.arange(keys + 1) - 0.5, np.arange(seq + 1) - 0.5
    axes.pcolormesh(across, down, allowed, cmap=colours, vmin=0, vmax=1, **lines)
    axes.set(ylim=(seq - 0.5, -0.5))
    axes.spines[:].set_visible(False)


def _titles(leading: tuple[int, ...]) -> list[str]:
    """What tells the panels apart: the row of a batch and the head, where there are several."""
    *batch, heads = leading
    names = []
    for place in np.ndindex(*leading):
        row = ", ".join(map(str, place[:-1]))
        words = [f"row {row}"] if np.prod(batch, dtype=int) > 1 else []
        names.append(", ".join(words + ([f"head {place[-1]}"] if heads > 1 else [])))
    return names


def _name(part: Mask) -> str:
    """The name of a description, with its numbers where it has some beside arrays."""
    numbers = [str(value) for value in vars(part).values() if isinstance(value, int)]
    return type(part).__name__ + (f"({', '.join(numbers)})" if numbers else "")
