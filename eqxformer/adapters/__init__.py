"""What goes in the place of a model's linear maps: adapters that are learned, int8 weights."""

from eqxformer.adapters.lora import AdaptedLinear, Adapter, Decomposed, DoRA, LoRA, LowRank
from eqxformer.adapters.peft_format import load_adapters, save_adapters
from eqxformer.adapters.quantised import QuantisedLinear, quantise
from eqxformer.adapters.surgery import (
    adapters_of,
    add_lora,
    merge,
    unmerge,
    with_adapters,
    without_adapters,
)

__all__ = [
    "AdaptedLinear",
    "Adapter",
    "Decomposed",
    "DoRA",
    "LoRA",
    "LowRank",
    "QuantisedLinear",
    "adapters_of",
    "add_lora",
    "load_adapters",
    "merge",
    "quantise",
    "save_adapters",
    "unmerge",
    "with_adapters",
    "without_adapters",
]
