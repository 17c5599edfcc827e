"""Optimizers and learning-rate schedules as values that build optax chains."""

from eqxformer.optimizers.averaged import Averaged
from eqxformer.optimizers.muon import Muon
from eqxformer.optimizers.optimizer import (
    SGD,
    Adafactor,
    AdamW,
    ClipByNorm,
    ClipByValue,
    Lion,
    Optimizer,
)
from eqxformer.optimizers.schedules import (
    InverseSquareRoot,
    Schedule,
    WarmupCosine,
    WarmupExponential,
    WarmupLinear,
    WarmupStableDecay,
)
from eqxformer.optimizers.trainable import Except, Only, Trainable

__all__ = [
    "SGD",
    "Adafactor",
    "AdamW",
    "Averaged",
    "ClipByNorm",
    "ClipByValue",
    "Except",
    "InverseSquareRoot",
    "Lion",
    "Muon",
    "Only",
    "Optimizer",
    "Schedule",
    "Trainable",
    "WarmupCosine",
    "WarmupExponential",
    "WarmupLinear",
    "WarmupStableDecay",
]
