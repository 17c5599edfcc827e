"""Losses: what a training step minimises, as values that are called with a model and a batch."""

from eqxformer.losses.chunked import cross_entropy_of
from eqxformer.losses.cross_entropy import Loss, cross_entropy
from eqxformer.losses.scores import NextTokenScores
from eqxformer.losses.tokens import (
    LossFunction,
    NextToken,
    SequenceToSequence,
    TokenLoss,
    next_token_loss,
    sequence_to_sequence_loss,
)

__all__ = [
    "Loss",
    "LossFunction",
    "NextToken",
    "NextTokenScores",
    "SequenceToSequence",
    "TokenLoss",
    "cross_entropy",
    "cross_entropy_of",
    "next_token_loss",
    "sequence_to_sequence_loss",
]
