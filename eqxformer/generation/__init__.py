"""Generation: samplers and the decode loop."""

from eqxformer.generation.generate import generate
from eqxformer.generation.samplers import Greedy, Sample, Sampler

__all__ = ["Greedy", "Sample", "Sampler", "generate"]
