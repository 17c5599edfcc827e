"""Qwen3: Llama with an RMS norm on every query and key head."""

from typing import Any

from eqxformer.architectures import llama
from eqxformer.architectures._decoders import decoder, derived
from eqxformer.architectures._layer_types import describe_later_windows, later_windows, windowed
from eqxformer.checkpoints.rope import rotary
from eqxformer.checkpoints.rules import same, under
from eqxformer.checkpoints.settings import Settings
from eqxformer.models.decoder_lm import DecoderLM


def config(settings: Settings) -> DecoderLM.Config:
    """Llama's tree with norms of queries and keys; windows where the settings ask for them."""
    settings.suppose(head_dim=128)
    tree = normed(settings)
    return windowed(tree, *later_windows(settings, len(tree.blocks)))


def normed(settings: Settings) -> DecoderLM.Config:
    """Llama's tree with norms of queries and keys."""
    settings.only("mlp_bias", False)
    settings.skip("dual_chunk_attention_config")  # how other programs read very long texts
    tree = llama.tree_of(settings, rotary(settings))
    return tree.edit("blocks.*.attention", qk_norm=tree.norm)


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    return {**derived(llama.describe, "mlp_bias")(tree), **describe_later_windows(tree)}


QK_NORM = under(
    "blocks.*.attention",
    "model.layers.*.self_attn",
    same("query_norm", "q_norm"),
    same("key_norm", "k_norm"),
)
RULES = (*llama.RULES, *QK_NORM)

ARCHITECTURE = decoder("qwen3", "Qwen3", config, RULES, questions="transformer.", describe=describe)
