"""Mixtral: Mistral with a mixture of experts, the softmax over the chosen ones."""

import dataclasses
from typing import Any

from eqxformer.architectures import llama
from eqxformer.architectures._decoders import decoder, derived
from eqxformer.architectures._layer_types import windowed_throughout
from eqxformer.checkpoints.rope import rotary
from eqxformer.checkpoints.rules import stacked, turned, under
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.experts import Experts, TopKThenSoftmax
from eqxformer.models.decoder_lm import DecoderLM


def config(settings: Settings) -> DecoderLM.Config:
    """Llama's tree with experts of its feed-forward's kind in every layer."""
    settings.suppose(num_key_value_heads=8, rms_norm_eps=1e-5)
    settings.only("attention_bias", False)
    settings.only("mlp_bias", False)
    settings.only("router_jitter_noise", 0.0)
    settings.skip("output_router_logits", "router_aux_loss_coef")
    tree = llama.tree_of(settings, rotary(settings, base=1e6))
    block: Any = tree.blocks[0]
    expert = block.feed_forward
    experts = Experts.Config(
        count=settings.size("num_local_experts", 8),
        top=settings.size("num_experts_per_tok", 2),
        expert=expert,
        routing=TopKThenSoftmax(),
        router=expert.gate,
    )
    return windowed_throughout(settings, tree.edit("blocks.*", feed_forward=experts))


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    block = tree.blocks[0]
    dense = tree.edit("blocks.*", feed_forward=block.feed_forward.expert)
    return {
        **derived(llama.describe, "attention_bias", "mlp_bias")(dense),
        "num_local_experts": block.feed_forward.count,
        "num_experts_per_tok": block.feed_forward.top,
        "sliding_window": block.attention.window,
    }


RULES = (
    *llama.RULES,
    *under(
        "blocks.*.feed_forward",
        "model.layers.*.block_sparse_moe",
        turned("router", "gate"),
        stacked("experts.gate", "experts.#.w1"),
        stacked("experts.up", "experts.#.w3"),
        stacked("experts.down", "experts.#.w2"),
    ),
)

ARCHITECTURE = dataclasses.replace(
    decoder("mixtral", "Mixtral", config, RULES, questions="model.", describe=describe),
    modules={"block_sparse_moe": "mlp"},  # since version 5, whose files keep the old name
)
