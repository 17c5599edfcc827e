"""Qwen2 and Qwen2.5: Llama with biases of queries, keys and values."""

from typing import Any

from eqxformer.architectures import llama
from eqxformer.architectures._decoders import decoder, derived
from eqxformer.architectures._layer_types import describe_later_windows, later_windows, windowed
from eqxformer.checkpoints.rope import rotary
from eqxformer.checkpoints.settings import Settings
from eqxformer.models.decoder_lm import DecoderLM


def config(settings: Settings) -> DecoderLM.Config:
    """Llama's tree with those biases; windows where the settings ask for them."""
    settings.only("attention_bias", False)
    settings.only("mlp_bias", False)
    settings.only("use_mrope", False)
    settings.skip("dual_chunk_attention_config")  # how other programs read very long texts
    tree = llama.tree_of(settings, rotary(settings))
    for name in ("query", "key", "value"):
        tree = tree.edit(f"blocks.*.attention.{name}", bias=True)
    return windowed(tree, *later_windows(settings, len(tree.blocks)))


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    less = derived(llama.describe, "attention_bias", "mlp_bias")
    return {**less(tree), **describe_later_windows(tree)}


ARCHITECTURE = decoder(
    "qwen2", "Qwen2", config, llama.RULES, questions="transformer.", describe=describe
)
