"""Training: the step, and the thin loop round it.

Start reading at `step.py`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from eqxformer.training.averaging import AverageLast, average
from eqxformer.training.best import EarlyStopping, SaveBest
from eqxformer.training.bleu import bleu
from eqxformer.training.callbacks import (
    Callback,
    Evaluate,
    Record,
    Save,
    ShowSamples,
    Validate,
    evaluator,
)
from eqxformer.training.checkpoints import CheckpointNotWritten, Checkpoints, DamagedCheckpoints
from eqxformer.training.estimate import Estimate, estimate
from eqxformer.training.measures import Measure
from eqxformer.training.precision import Precision
from eqxformer.training.records import LossPlot, MetricsFile
from eqxformer.training.sinks import TensorBoard, WeightsAndBiases
from eqxformer.training.state import TrainState, abstract_state
from eqxformer.training.step import Step, make_step
from eqxformer.training.trainer import NonFiniteLoss, Trainer

if TYPE_CHECKING:
    from eqxformer.training.translation import translate

__all__ = [
    "AverageLast",
    "Callback",
    "CheckpointNotWritten",
    "Checkpoints",
    "DamagedCheckpoints",
    "EarlyStopping",
    "Estimate",
    "Evaluate",
    "LossPlot",
    "Measure",
    "MetricsFile",
    "NonFiniteLoss",
    "Precision",
    "Record",
    "Save",
    "SaveBest",
    "ShowSamples",
    "Step",
    "TensorBoard",
    "TrainState",
    "Trainer",
    "Validate",
    "WeightsAndBiases",
    "abstract_state",
    "average",
    "bleu",
    "estimate",
    "evaluator",
    "make_step",
    "translate",
]


def __getattr__(name: str) -> Any:
    if name == "translate":  # it alone needs generation, which a training run starts sooner without
        return importlib.import_module("eqxformer.training.translation").translate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
