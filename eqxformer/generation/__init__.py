"""Generation: processors of logits, samplers, and the decode loop."""

from eqxformer.generation.constraints import (
    BadWords,
    Force,
    MinLength,
    MinNewTokens,
    NoRepeatNGram,
    Suppress,
    SuppressAtBegin,
)
from eqxformer.generation.generate import generate
from eqxformer.generation.penalties import (
    FrequencyPenalty,
    LogitBias,
    PresencePenalty,
    RepetitionPenalty,
)
from eqxformer.generation.processors import Chain, Process, Processor, Seen
from eqxformer.generation.samplers import Greedy, Sample, Sampler
from eqxformer.generation.stops import Stop, StopIds, StopWhen
from eqxformer.generation.warpers import Epsilon, MinP, Temperature, TopK, TopP, Typical

__all__ = [
    "BadWords",
    "Chain",
    "Epsilon",
    "Force",
    "FrequencyPenalty",
    "Greedy",
    "LogitBias",
    "MinLength",
    "MinNewTokens",
    "MinP",
    "NoRepeatNGram",
    "PresencePenalty",
    "Process",
    "Processor",
    "RepetitionPenalty",
    "Sample",
    "Sampler",
    "Seen",
    "Stop",
    "StopIds",
    "StopWhen",
    "Suppress",
    "SuppressAtBegin",
    "Temperature",
    "TopK",
    "TopP",
    "Typical",
    "generate",
]
