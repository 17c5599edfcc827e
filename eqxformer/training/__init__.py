"""Training: losses, optimizers, the step, data, and the thin loop round them.

Start reading at `step.py`.
"""

from eqxformer.training.batches import PairBatch, TokenBatch
from eqxformer.training.callbacks import (
    Callback,
    Evaluate,
    LossPlot,
    MetricsFile,
    Record,
    Save,
    ShowSamples,
    Validate,
    evaluator,
)
from eqxformer.training.characters import Characters
from eqxformer.training.chunked import cross_entropy_of
from eqxformer.training.cross_entropy import Loss, cross_entropy
from eqxformer.training.loss import (
    LossFunction,
    NextToken,
    SequenceToSequence,
    TokenLoss,
    next_token_loss,
    sequence_to_sequence_loss,
)
from eqxformer.training.muon import Muon
from eqxformer.training.optimizer import (
    SGD,
    Adafactor,
    AdamW,
    ClipByNorm,
    ClipByValue,
    Lion,
    Optimizer,
)
from eqxformer.training.schedules import (
    InverseSquareRoot,
    Schedule,
    WarmupCosine,
    WarmupExponential,
    WarmupLinear,
    WarmupStableDecay,
)
from eqxformer.training.step import TrainState, make_step
from eqxformer.training.trainer import NonFiniteLoss, Trainer
from eqxformer.training.windows import Epochs, RandomWindows, Windows, consecutive

__all__ = [
    "SGD",
    "Adafactor",
    "AdamW",
    "Callback",
    "Characters",
    "ClipByNorm",
    "ClipByValue",
    "Epochs",
    "Evaluate",
    "InverseSquareRoot",
    "Lion",
    "Loss",
    "LossFunction",
    "LossPlot",
    "MetricsFile",
    "Muon",
    "NextToken",
    "NonFiniteLoss",
    "Optimizer",
    "PairBatch",
    "RandomWindows",
    "Record",
    "Save",
    "Schedule",
    "SequenceToSequence",
    "ShowSamples",
    "TokenBatch",
    "TokenLoss",
    "TrainState",
    "Trainer",
    "Validate",
    "WarmupCosine",
    "WarmupExponential",
    "WarmupLinear",
    "WarmupStableDecay",
    "Windows",
    "consecutive",
    "cross_entropy",
    "cross_entropy_of",
    "evaluator",
    "make_step",
    "next_token_loss",
    "sequence_to_sequence_loss",
]
