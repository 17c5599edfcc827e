"""Sizes that no machine holds are refused before anything is made."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxformer.bench.ceilings import memory
from eqxformer.checkpoints.names import is_array
from eqxformer.checkpoints.rebuild import shapes
from eqxformer.config import paths
from eqxformer.inspect.table import size
from eqxformer.optimizers.optimizer import ClipByNorm
from eqxformer.optimizers.trainable import Trainable
from eqxformer.training.accumulation import few_rows
from eqxformer.training.experiment import Experiment
from eqxformer.training.state import TrainState
from eqxformer.training.traffic import sides

_ID, _SUMMED = 4, 4  # bytes of a token's id, and of a number of summed gradients


def check_memory(experiment: Experiment, devices: int = 1) -> None:
    """Raises `ValueError` where a step needs more memory than there is, whatever else it does.

    Devices that share it have as many times the memory of one, but those that a CPU passes for.
    """
    there = memory()
    if there is None:
        return
    on_cpu = jax.default_backend() == "cpu"
    if not on_cpu:
        there *= devices
    weights, needed = least(experiment, alone_on_cpu=on_cpu and devices == 1)
    if needed > there:
        raise ValueError(
            f"Training needs at least {size(needed)}, {size(weights)} of it for the weights "
            f"themselves, and there is memory of {size(there)}. Make the model or the batch "
            "smaller, or set `microbatch`, the rows whose gradient is made at once."
        )


def least(experiment: Experiment, *, alone_on_cpu: bool = False) -> tuple[int, int]:
    """Bytes of the weights, and of all that a step cannot but hold at one time, they among it.

    It always holds the weights, the optimizer's memory and the batch; and, one after the other,
    what waits for the backward pass and the gradients. Where those of microbatches are summed up,
    the sum is there while the next ones are made. A CPU may make some rows' gradients at once
    unasked.
    """
    rows, length = experiment.data.shape
    state = _state(experiment)
    trained, frozen = eqx.partition(state.model, experiment.trains.mask(state.model))
    # A checkpoint may hold what is not trained in a type as small as a byte.
    weights = _bytes(trained) + (
        _bytes(frozen, most=1) if experiment.checkpoint else _bytes(frozen)
    )
    always = weights + _bytes(state.optimizer) + _ID * rows * length
    whole = max(_waiting(experiment, rows * length), _gradients(experiment, trained))
    part = experiment.microbatch
    if part is None and alone_on_cpu and experiment.loss.splits:
        part = few_rows(rows, length, _bytes(trained, most=1))
    if part is None or part >= rows:
        return weights, always + whole
    summed = _SUMMED * _bytes(trained, most=1) + _waiting(experiment, part * length)
    return weights, always + (summed if experiment.microbatch else min(summed, whole))


def _state(experiment: Experiment) -> TrainState:
    """The shapes of what a step changes."""
    optimizer = experiment.optimizer.build(experiment.steps)
    options = {"trains": experiment.trains, "precision": experiment.precision}

    def made(model: Any, key: Any) -> TrainState:
        return TrainState.create(model, optimizer, key=key, **options)

    return eqx.filter_eval_shape(made, shapes(experiment.model), jax.random.key(0))


def _gradients(experiment: Experiment, trained: Any) -> int:
    """Bytes of all gradients, where all have to be known before a weight is changed.

    Elsewhere each may be gone before the next one is made.
    """
    clips = any(isinstance(part, ClipByNorm) for part in paths(experiment.optimizer).values())
    if not (clips or experiment.skips or experiment.watch):
        return 0
    return _bytes(trained, most=jnp.dtype(experiment.precision.compute).itemsize)


def _waiting(experiment: Experiment, tokens: int) -> int:
    """Bytes of what comes out of every block and waits for the backward pass, of so many tokens.

    Encoder and decoder may have any share of the tokens. Nothing is counted where batches are of
    several sizes, nor where parts of the model are not trained, before which nothing may wait.
    """
    if len(experiment.data.row_counts) > 1 or experiment.trains != Trainable():
        return 0
    numbers = min(side.dim * len(side.blocks) for side in sides(experiment.model))
    return tokens * numbers * jnp.dtype(experiment.precision.compute).itemsize


def _bytes(tree: Any, most: int = 8) -> int:
    """Bytes of the numbers of a tree, each in its type, or in one of so many bytes at most."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if is_array(leaf)]
    return sum(math.prod(leaf.shape) * min(leaf.dtype.itemsize, most) for leaf in leaves)
