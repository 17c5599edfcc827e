"""Gemma 2: Gemma with a norm on either side, bounded scores, and windows in every other layer."""

from typing import Any

from eqxformer.architectures import gemma, llama
from eqxformer.architectures._decoders import decoder, derived
from eqxformer.architectures._layer_types import (
    FULL,
    SLIDING,
    describe_windows,
    layer_types,
    windowed,
)
from eqxformer.checkpoints.rope import rotary
from eqxformer.checkpoints.rules import same, under
from eqxformer.checkpoints.settings import THEIR_ACTIVATIONS, Settings
from eqxformer.layers.rotary import Rotary
from eqxformer.models.decoder_lm import DecoderLM


def config(settings: Settings) -> DecoderLM.Config:
    """The tree with soft bounds of the attention's scores and of the logits; null is no bound."""
    settings.suppose(attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    settings.only("use_bidirectional_attention", False)
    tree = tree_of(settings, rotary(settings))
    tree = tree.edit(
        "blocks.*.attention", softcap=settings.number("attn_logit_softcapping", None)
    ).edit("head", softcap=settings.number("final_logit_softcapping", None))
    types = [FULL if i % 2 else SLIDING for i in range(len(tree.blocks))]
    return windowed(tree, layer_types(settings, types), settings.maybe("sliding_window", 4096))


def tree_of(settings: Settings, positions: Rotary) -> DecoderLM.Config:
    """Gemma's tree with four norms in a block, and a scale of the scores by a setting."""
    settings.suppose(num_key_value_heads=4)
    # The activation goes by another name; the other keys are those of caches, or of old files.
    settings.skip("hidden_act", "cache_implementation", "sliding_window_size")
    tree = gemma.tree_of(settings, positions)
    activation = settings.activation("hidden_activation", "gelu_pytorch_tanh")
    scale = settings.number("query_pre_attn_scalar", 256.0) ** -0.5
    return (
        tree.edit("blocks.*.*_residual", post_norm=tree.norm)
        .edit("blocks.*.feed_forward", activation=activation)
        .edit("blocks.*.attention", scale=scale)
    )


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    block = tree.blocks[0]
    head = tree.head
    found = derived(llama.describe, "mlp_bias", "hidden_act")(tree)
    scale = block.attention.scale
    return {
        **found,
        **describe_windows(tree),
        "hidden_activation": THEIR_ACTIVATIONS[block.feed_forward.activation],
        "query_pre_attn_scalar": found["head_dim"] if scale is None else round(scale**-2),
        "attn_logit_softcapping": block.attention.softcap,
        "final_logit_softcapping": head.softcap,
    }


RULES = (
    *llama.RULES,
    *under(
        "blocks.*",
        "model.layers.*",
        same("attention_residual.post_norm", "post_attention_layernorm"),
        same("feed_forward_residual.pre_norm", "pre_feedforward_layernorm"),
        same("feed_forward_residual.post_norm", "post_feedforward_layernorm"),
    ),
)

ARCHITECTURE = decoder("gemma2", "Gemma2", config, RULES, describe=describe)
