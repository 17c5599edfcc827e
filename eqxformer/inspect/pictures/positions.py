"""Positions as pictures: tables of vectors, rotations of pairs, biases by distance."""

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from eqxformer.inspect.pictures._figures import FROM_ZERO, new_figure
from eqxformer.layers.biases import PositionBias
from eqxformer.layers.positions import Positions
from eqxformer.layers.rotary import Rotary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 12  # heads that a legend names; more are told by their shade


def position_table(positions: Positions, length: int, *, title: str | None = None) -> "Figure":
    """The vector of every position: positions down, numbers of the vector across.

    Arguments:
        positions: sinusoids or a learned table.
        length: positions to draw, from 0 on.

    Raises `ValueError` past the end of a learned table; `ImportError` where matplotlib is missing.

    Example:
        >>> import eqxformer as ef
        >>> figure = ef.inspect.pictures.position_table(ef.Sinusoids(16), 32)
        >>> figure.axes[0].get_ylabel()
        'position'
    """
    vectors = np.asarray(positions(jnp.arange(length)), np.float32)
    figure = new_figure(6.5, 4.5)
    axes = figure.add_subplot(xlabel="number of the vector", ylabel="position")
    _heat(axes, vectors, "value")
    axes.set_title(title or type(positions).__name__, fontsize=10)
    return figure


def rotary(part: Rotary, head_dim: int, length: int, *, title: str | None = None) -> "Figure":
    """The cosine by which every pair of a head is rotated, and the score by distance.

    On the left, positions down and pairs across; on the right, the score of a query and a key that
    are both all ones, as a share of the score at distance 0.

    Arguments:
        part: the rotation, scaled or not.
        head_dim: size of a head.
        length: positions to draw, from 0 on.

    Example:
        >>> import eqxformer as ef
        >>> figure = ef.inspect.pictures.rotary(ef.Rotary(), head_dim=16, length=64)
        >>> [axes.get_xlabel() for axes in figure.axes[:2]]
        ['pair', 'distance of query and key']
    """
    at = jnp.arange(length)
    cosines = np.asarray(part.tables(part.width(head_dim), at)[0], np.float32)
    turned = np.asarray(part(jnp.ones((1, length, head_dim)), at), np.float32)[0]
    scores = turned @ turned[0] / (turned[0] @ turned[0])
    figure = new_figure(9, 3.8)
    left, right = figure.subplots(1, 2)
    left.set(xlabel="pair", ylabel="position")
    _heat(left, cosines, "cosine")
    right.plot(np.arange(length), scores, linewidth=1.2)
    right.axhline(0, color="#30363d", linewidth=0.8, linestyle=":")
    right.set(xlabel="distance of query and key", ylabel="score, 1 at distance 0")
    right.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title or f"Rotary(base={part.base:,.0f})", fontsize=10)
    return figure


def position_bias(bias: PositionBias, length: int, *, title: str | None = None) -> "Figure":
    """What every head adds to a score, by how far the key is from the query.

    Arguments:
        bias: ALiBi, or T5's relative bias with its table.
        length: queries and keys; distances to `length - 1` on either side are drawn.

    Example:
        >>> import eqxformer as ef
        >>> figure = ef.inspect.pictures.position_bias(ef.ALiBi(4), 16)
        >>> len(figure.axes[0].get_lines()) - 1  # one for each head, and one at distance 0
        4
    """
    at = jnp.arange(length)
    added = np.asarray(bias(at, at), np.float32)
    heads = added.shape[-3]
    added = added.reshape(-1, heads, length, length)[0]
    # The first query sees all that is ahead, the last one all that is behind.
    behind, ahead = added[:, -1, :], added[:, 0, 1:]
    if bias.counts_places:  # added by the key's place alone: its differences count, and no others
        behind, ahead = behind - behind[:, -1:], ahead[:, :0]
    curves = np.concatenate([behind, ahead], axis=-1)
    distances = np.arange(1 - length, ahead.shape[-1] + 1)
    figure = new_figure(6.5, 4)
    axes = figure.add_subplot(xlabel="place of the key - place of the query", ylabel="added score")
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0.0, 0.85, heads))
    styles = ("-", "--", ":", "-.")
    for head, (curve, shade) in enumerate(zip(curves, shades, strict=True)):
        line = styles[head % len(styles)]
        axes.plot(distances, curve, color=shade, linestyle=line, label=f"{head}", linewidth=1.2)
    axes.axvline(0, color="#30363d", linewidth=0.8, linestyle=":")
    if heads <= _NAMED:
        axes.legend(title="head", fontsize=7, title_fontsize=8, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title or type(bias).__name__, fontsize=10)
    return figure


def _heat(axes: Any, values: np.ndarray, label: str) -> None:
    """Values of both signs, white at zero, with a bar that says what they are."""
    most = float(np.abs(values).max()) or 1.0
    options = {"aspect": "auto", "interpolation": "nearest"}
    drawn = axes.imshow(values, cmap=FROM_ZERO, vmin=-most, vmax=most, **options)
    bar = axes.figure.colorbar(drawn, ax=axes, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
