"""Losses: what a training step minimises, as values that are called with a model and a batch."""

from eqxformer.losses.against import Against, Comparison
from eqxformer.losses.chunked import cross_entropy_of
from eqxformer.losses.contrastive import Contrastive
from eqxformer.losses.cross_entropy import Loss, cross_entropy
from eqxformer.losses.distillation import Distillation
from eqxformer.losses.labels import (
    LabelLoss,
    SequenceClassification,
    SequenceRegression,
    TokenClassification,
)
from eqxformer.losses.objective import Answer, LossFunction, Objective, Question, Supervised
from eqxformer.losses.preference import DirectPreference
from eqxformer.losses.scores import TokenScores
from eqxformer.losses.tokens import (
    MaskedLM,
    NextToken,
    PrefixLM,
    SequenceToSequence,
    TokenLoss,
    next_token_loss,
    sequence_to_sequence_loss,
)

__all__ = [
    "Against",
    "Answer",
    "Comparison",
    "Contrastive",
    "DirectPreference",
    "Distillation",
    "LabelLoss",
    "Loss",
    "LossFunction",
    "MaskedLM",
    "NextToken",
    "Objective",
    "PrefixLM",
    "Question",
    "SequenceClassification",
    "SequenceRegression",
    "SequenceToSequence",
    "Supervised",
    "TokenClassification",
    "TokenLoss",
    "TokenScores",
    "cross_entropy",
    "cross_entropy_of",
    "next_token_loss",
    "sequence_to_sequence_loss",
]
