"""Qwen3-MoE: Qwen3 with mixtures of experts in all or some of its layers."""

from typing import Any

from eqxformer.architectures import llama, qwen3
from eqxformer.architectures._decoders import decoder, derived
from eqxformer.architectures._layer_types import windowed_throughout
from eqxformer.checkpoints.rules import stacked, turned, under
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.experts import Experts, SoftmaxThenTopK
from eqxformer.models.decoder_lm import DecoderLM

OF_EXPERTS = ("num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")
OF_EXPERTS += ("mlp_only_layers", "decoder_sparse_step")


def config(settings: Settings) -> DecoderLM.Config:
    """Qwen3's tree with experts in every `decoder_sparse_step`-th layer but `mlp_only_layers`."""
    settings.suppose(num_key_value_heads=4)
    settings.skip("output_router_logits", "router_aux_loss_coef", "max_window_layers")
    settings.synonyms(num_experts="num_local_experts")
    tree = qwen3.normed(settings)
    if settings.flag("use_sliding_window", False):
        tree = windowed_throughout(settings, tree, absent=4096)
    settings.skip("sliding_window")
    count = settings.size("num_experts", 128, least=0)
    if count == 0:
        settings.skip(*OF_EXPERTS)
        return tree
    block: Any = tree.blocks[0]
    experts = Experts.Config(
        count=count,
        top=settings.size("num_experts_per_tok", 8),
        expert=block.feed_forward.edit(hidden=settings.size("moe_intermediate_size", 768)),
        routing=SoftmaxThenTopK(settings.flag("norm_topk_prob", False)),
        router=block.feed_forward.gate,
    )
    dense = settings.items("mlp_only_layers", [])
    step = settings.size("decoder_sparse_step", 1)
    blocks = tuple(
        block if i in dense or (i + 1) % step else block.edit(feed_forward=experts)
        for i, block in enumerate(tree.blocks)
    )
    return tree.edit(blocks=blocks)


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    parts = [block.feed_forward for block in tree.blocks]
    dense = [i for i, part in enumerate(parts) if not isinstance(part, Experts.Config)]
    experts: Any = next(part for part in parts if isinstance(part, Experts.Config))
    plain = parts[dense[0]] if dense else experts.expert
    window = tree.blocks[0].attention.window
    return {
        **derived(llama.describe, "mlp_bias")(tree.edit("blocks.*", feed_forward=plain)),
        "mlp_only_layers": dense,
        "num_experts": experts.count,
        "num_experts_per_tok": experts.top,
        "moe_intermediate_size": experts.expert.hidden,
        "norm_topk_prob": experts.routing.normalize,
        "use_sliding_window": window is not None,
        "sliding_window": window,
    }


RULES = (
    *qwen3.RULES,
    *under(
        "blocks.*.feed_forward",
        "model.layers.*.mlp",
        turned("router", "gate"),
        stacked("experts.gate", "experts.#.gate_proj"),
        stacked("experts.up", "experts.#.up_proj"),
        stacked("experts.down", "experts.#.down_proj"),
    ),
)

ARCHITECTURE = decoder(
    "qwen3_moe", "Qwen3Moe", config, RULES, questions="transformer.", describe=describe
)
