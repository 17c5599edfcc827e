"""Sizes that no machine holds are refused before anything is made."""

import math

import jax

from eqxformer.bench.ceilings import memory, step_numbers
from eqxformer.checkpoints.rebuild import shapes
from eqxformer.inspect.table import count, size
from eqxformer.training.experiment import Experiment

_FLOAT = 4  # bytes


def check_memory(experiment: Experiment, devices: int = 1) -> None:
    """Raises `ValueError` where a step needs more memory than there is, whatever else it does.

    Devices that share it have as many times the memory of one, but those that a CPU passes for.
    """
    weights = count(shapes(experiment.model))
    needed = _FLOAT * step_numbers(experiment.model, math.prod(experiment.data.shape))
    there = memory()
    if there is not None and jax.default_backend() != "cpu":
        there *= devices
    if there is not None and needed > there:
        raise ValueError(
            f"Training needs at least {size(needed)}, {size(_FLOAT * weights)} of it for the "
            f"weights themselves, and there is memory of {size(there)}. "
            "Make the model or the batch smaller."
        )
