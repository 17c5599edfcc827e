"""Sizes that no machine holds are refused before anything is made."""

import math
import os
from typing import Any

import jax

from eqxformer.checkpoints.native import shapes
from eqxformer.inspect.table import size
from eqxformer.training.experiment import Experiment

_OF_WEIGHTS = 4  # copies: the weights, their gradients, and Adam's two moments
_OF_LOGITS = 2  # copies: the logits of a batch and their gradient
_FLOAT = 4  # bytes


def check_memory(experiment: Experiment) -> None:
    """Raises `ValueError` where weights and logits alone need more memory than there is."""
    skeleton = shapes(experiment.model)
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(skeleton))
    logits = math.prod(experiment.data.shape) * _vocab(experiment.model)
    needed = _FLOAT * (_OF_WEIGHTS * weights + _OF_LOGITS * logits)
    there = _memory()
    if there is not None and needed > there:
        raise ValueError(
            f"Training needs at least {size(needed)}, {size(_FLOAT * weights)} of it for the "
            f"weights themselves, and there is memory of {size(there)}. "
            "Make the model or the batch smaller."
        )


def _vocab(model: Any) -> int:
    return model.vocab if hasattr(model, "vocab") else model.decoder.vocab


def _memory() -> int | None:
    """The bytes of the first device, or of the machine; None where nobody says."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is not None:
        return limit
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
