"""Gemma: Llama with gains stored less one, tanh GELU, embeddings times sqrt(dim), a tied head."""

from typing import Any

from eqxformer.architectures import llama
from eqxformer.architectures._decoders import decoder, derived
from eqxformer.checkpoints.rope import rotary
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.rotary import Rotary
from eqxformer.models.decoder_lm import DecoderLM


def config(settings: Settings) -> DecoderLM.Config:
    """Gemma's tree; its first files say `gelu` and mean the approximation by a tanh."""
    settings.suppose(hidden_act="gelu_pytorch_tanh", num_key_value_heads=16)
    settings.only("hidden_activation", "gelu_pytorch_tanh")
    settings.only("use_bidirectional_attention", False)
    tree = tree_of(settings, rotary(settings))
    if settings.get("hidden_act", None) == "gelu":
        return tree.edit("blocks.*.feed_forward", activation="gelu_tanh")
    return tree


def tree_of(settings: Settings, positions: Rotary) -> DecoderLM.Config:
    """Llama's tree with the norms and the embedding of all Gemmas."""
    settings.suppose(head_dim=256, tie_word_embeddings=True)
    settings.only("mlp_bias", False)
    tree: Any = llama.tree_of(settings, positions)
    norm = tree.norm.edit(offset=1.0)
    tree = tree.edit("blocks.*.*_residual", pre_norm=norm)
    return tree.edit("embedding", scale="rounded sqrt(dim)").edit(norm=norm)


describe = derived(llama.describe, "mlp_bias")

ARCHITECTURE = decoder("gemma", "Gemma", config, llama.RULES, describe=describe)
