"""Training: the step, and the thin loop round it.

Start reading at `step.py`.
"""

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
from eqxformer.training.precision import Precision
from eqxformer.training.step import TrainState, make_step
from eqxformer.training.trainer import NonFiniteLoss, Trainer

__all__ = [
    "Callback",
    "Evaluate",
    "LossPlot",
    "MetricsFile",
    "NonFiniteLoss",
    "Precision",
    "Record",
    "Save",
    "ShowSamples",
    "TrainState",
    "Trainer",
    "Validate",
    "evaluator",
    "make_step",
]
