"""Mixtral: Mistral with a mixture of experts, the softmax over the chosen ones."""

from typing import Any

from eqxformer.architectures import llama
from eqxformer.architectures._decoders import decoder, derived
from eqxformer.architectures._experts import describe_experts, experts_of
from eqxformer.architectures._layer_types import windowed_throughout
from eqxformer.checkpoints.rope import rotary
from eqxformer.checkpoints.rules import stacked, turned, under
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.experts import TopKThenSoftmax
from eqxformer.models.decoder_lm import DecoderLM


def config(settings: Settings) -> DecoderLM.Config:
    """Llama's tree with experts of its feed-forward's kind in every layer."""
    settings.suppose(num_key_value_heads=8, rms_norm_eps=1e-5)
    settings.only("attention_bias", False)
    settings.only("mlp_bias", False)
    settings.only("router_jitter_noise", 0.0)
    settings.skip("output_router_logits", "router_aux_loss_coef")
    tree = llama.tree_of(settings, rotary(settings, base=1e6))
    tree = tree.edit("blocks.*", feed_forward=experts_of(
        tree.blocks[0].feed_forward,
        count=settings.size("num_local_experts", 8),
        top=settings.size("num_experts_per_tok", 2),
        routing=TopKThenSoftmax(),
    ))
    return windowed_throughout(settings, tree)


