"""Curves of losses over the steps of a run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eqxformer.inspect.pictures._figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def losses(curves: Mapping[str, Sequence[tuple[int, float]]]) -> "Figure":
    """Losses over steps: `loss` thin, with its running mean, and every other curve with its points.

    Arguments:
        curves: pairs of a step and nats per token, by name, such as `loss` and `validation_loss`.

    Raises `ValueError` where there is no curve; `ImportError` where matplotlib is not installed.

    Example:
        >>> import eqxformer as ef
        >>> curves = {"loss": [(0, 4.1), (10, 3.2)], "validation_loss": [(10, 3.3)]}
        >>> axes = ef.inspect.pictures.losses(curves).axes[0]
        >>> [text.get_text() for text in axes.get_legend().get_texts()]
        ['training', 'validation']
    """
    if not any(curves.values()):
        raise ValueError("There is no loss to draw yet.")
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
    for name, points in curves.items():
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        if name == "loss":
            axes.plot(steps, values, color="C0", alpha=0.25, linewidth=0.8)
            axes.plot(steps, _smooth(values), color="C0", label="training")
        else:
            label = name.replace("_loss", "")
            axes.plot(steps, values, color="C1", marker=".", linestyle="--", label=label)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _smooth(values: Sequence[float], keep: float = 0.95) -> list[float]:
    """Exponential running mean, without the pull of its start towards 0."""
    mean = weight = 0.0
    smooth = []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append(mean / weight)
    return smooth
