"""Generation: processors of logits, samplers, and the decode loop."""

from eqxformer.generation.automaton import Automaton
from eqxformer.generation.beam_search import Hypotheses, beam_search
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
from eqxformer.generation.drafts import Draft, DraftModel, PromptLookup, Proposal
from eqxformer.generation.following import Follower, Memory
from eqxformer.generation.generate import generate
from eqxformer.generation.penalties import (
    ExponentialLengthPenalty,
    FrequencyPenalty,
    LogitBias,
    PresencePenalty,
    RepetitionPenalty,
)
from eqxformer.generation.prefill import append, prefill
from eqxformer.generation.processors import Chain, Process, Processor, Seen
from eqxformer.generation.samplers import Greedy, Sample, Sampler
from eqxformer.generation.score import score
from eqxformer.generation.settings import GenerationSettings
from eqxformer.generation.speculative import Speculated, generate_speculative
from eqxformer.generation.state import GenerationState
from eqxformer.generation.stops import Stop, StopIds, StopWhen
from eqxformer.generation.stream import stream
from eqxformer.generation.warpers import (
    Epsilon,
    Eta,
    MinP,
    Normalize,
    Temperature,
    TopH,
    TopK,
    TopP,
    Typical,
)

__all__ = [
    "Automaton",
    "BadWords",
    "Chain",
    "Draft",
    "DraftModel",
    "Epsilon",
    "Eta",
    "ExponentialLengthPenalty",
    "Follower",
    "Force",
    "FrequencyPenalty",
    "GenerationSettings",
    "GenerationState",
    "Greedy",
    "Hypotheses",
    "LogitBias",
    "Memory",
    "MinLength",
    "MinNewTokens",
    "MinP",
    "NoRepeatNGram",
    "Normalize",
    "PresencePenalty",
    "Process",
    "Processor",
    "PromptLookup",
    "Proposal",
    "RepetitionPenalty",
    "Sample",
    "Sampler",
    "Seen",
    "Speculated",
    "Stop",
    "StopIds",
    "StopWhen",
    "Suppress",
    "SuppressAtBegin",
    "Temperature",
    "TopH",
    "TopK",
    "TopP",
    "Typical",
    "append",
    "beam_search",
    "decode",
    "generate",
    "generate_speculative",
    "prefill",
    "score",
    "stream",
]
