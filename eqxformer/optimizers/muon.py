"""Muon: for every matrix inside a model, a step in all of its directions at once."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import optax
from optax import contrib

from eqxformer.axes import leaf_axes, leaf_copies
from eqxformer.losses.cross_entropy import check_share
from eqxformer.optimizers.averaged import Averaged
from eqxformer.optimizers.optimizer import (
    AdamW,
    ClipByNorm,
    ClipByValue,
    Optimizer,
    check_decay,
    check_rate,
    clipped,
    rated,
)
from eqxformer.optimizers.schedules import Schedule

# Tables, whose rows are looked up and not multiplied, and what ends in scores of such rows.
_SCORES = frozenset({"vocab", "positions", "types", "labels", "buckets", "kernel", "experts"})


class Muon(Optimizer):
    """Momentum whose matrices are made orthogonal; another optimizer for everything else.

    Jordan et al. 2024: the running mean `m` of a matrix's gradient is replaced by `U V^T`, where
    `m = U S V^T`, by five steps of a Newton-Schulz iteration, and scaled by
    `sqrt(max(1, out / in))`. Which parameters are such matrices is read from their axis words:
    those with one input and one output axis, none of which counts tokens, places, labels or
    experts to choose from. Stacked layers and experts are a matrix each.

    Arguments:
        learning_rate: a number, or a schedule, for the matrices.
        momentum: decay of the running mean of the gradient.
        weight_decay: share of a matrix taken off in a step, times the learning rate.
        others: the optimizer of embeddings, heads, norms and biases.
        clip: what is done to all gradients first.

    Example:
        >>> import eqxformer as ef
        >>> settings = ef.Muon(0.02, others=ef.AdamW(3e-4), clip=ef.ClipByNorm(1.0))
        >>> optimizer = settings.build(steps=2000)
    """

    learning_rate: float | Schedule = 0.02
    momentum: float = 0.95
    weight_decay: float = 0.0
    others: Optimizer = AdamW(3e-4)
    clip: ClipByNorm | ClipByValue | None = None

    def check(self) -> None:
        check_rate(self.learning_rate)
        check_share("momentum", self.momentum)
        check_decay(self.weight_decay)
        if isinstance(self.others, Averaged):
            raise ValueError(
                "`others` must not be `Averaged`, which would average the rest alone; put it round "
                "all: `Averaged(Muon(...))`."
            )

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax chain for a run of `steps` steps."""
        matrices = optax.chain(
            contrib.scale_by_muon(beta=self.momentum, weight_dimension_numbers=_numbers),
            _by_shape(),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(rated(self.learning_rate, steps)),
        )
        groups: dict[Hashable, Any] = {True: matrices, False: self.others.build(steps)}
        return optax.chain(clipped(self.clip), optax.partition(groups, orthogonalised))


def orthogonalised(parameters: Any) -> Any:
    """Which parameters `Muon` makes orthogonal: True for matrices inside the model."""
    return _each(parameters, lambda axes, _: axes is not None)


def _each(parameters: Any, use: Callable[[tuple[int, int] | None, Any], Any]) -> Any:
    """What `use` makes of a parameter's input and output axis, or None, and of itself."""
    words, copies = leaf_axes(parameters), leaf_copies(parameters)

    def of(path: tuple[Any, ...], leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        first, spoken = copies.get(name, 0), words.get(name, ())
        own = spoken[first:]
        inside = len(own) == 2 and len(spoken) == leaf.ndim and not _SCORES.intersection(own)
        return use((first, first + 1) if inside else None, leaf)

    return jax.tree_util.tree_map_with_path(of, parameters)


def _numbers(parameters: Any) -> Any:
    return _each(parameters, lambda axes, _: axes and contrib.MuonDimensionNumbers(*axes))


def _by_shape() -> optax.GradientTransformation:
    def scale(updates: Any, parameters: Any = None) -> Any:
        def factor(axes: tuple[int, int] | None, update: jax.Array) -> float:
            into, out = (update.shape[i] for i in axes or (0, 0))
            return max(1.0, out / into) ** 0.5

        return jax.tree.map(lambda update, f: f * update, updates, _each(updates, factor))

    return optax.stateless(scale)
