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
from eqxformer.generation.decode import decode
from eqxformer.generation.following import Follower, Memory
from eqxformer.generation.generate import generate
from eqxformer.generation.penalties import (
    FrequencyPenalty,
    LogitBias,
    PresencePenalty,
    RepetitionPenalty,
)
from eqxformer.generation.prefill import append, prefill
from eqxformer.generation.processors import Chain, Process, Processor, Seen
from eqxformer.generation.samplers import Greedy, Sample, Sampler
from eqxformer.generation.state import GenerationState
from eqxformer.generation.stops import Stop, StopIds, StopWhen
from eqxformer.generation.stream import stream
from eqxformer.generation.warpers import Epsilon, MinP, Temperature, TopK, TopP, Typical

__all__ = [
    "BadWords",
    "Chain",
    "Epsilon",
    "Follower",
    "Force",
    "FrequencyPenalty",
    "GenerationState",
    "Greedy",
    "LogitBias",
    "Memory",
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
    "append",
    "decode",
    "generate",
    "prefill",
    "stream",
]
