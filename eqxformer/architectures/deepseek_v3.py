"""DeepSeek-V3: Llama with latent attention, and with experts in groups beside one for all."""

import math
from typing import Any

from eqxformer.architectures import llama
from eqxformer.architectures._decoders import decoder, sizes
from eqxformer.checkpoints.rope import describe_length, describe_rotary, rotary
from eqxformer.checkpoints.rules import Rules, fused, same, stacked, turned, under
from eqxformer.checkpoints.settings import THEIR_ACTIVATIONS, Settings
from eqxformer.layers.experts import Experts, SigmoidTopK
from eqxformer.layers.initializers import Zeros
from eqxformer.layers.latent_attention import LatentAttention
from eqxformer.layers.norms import RMSNorm
from eqxformer.models.decoder_lm import DecoderLM

# Of training, or of another model behind this one.
WITHOUT_EFFECT = ("ep_size", "aux_loss_alpha", "seq_aux", "num_nextn_predict_layers")
WITHOUT_EFFECT += ("num_mtp_layers", "output_router_logits", "head_dim", "qk_head_dim")
ALL_ALIKE = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}


def config(settings: Settings) -> DecoderLM.Config:
    """Llama's tree with those parts; the first layers keep its feed-forward."""
    settings.only("mlp_bias", False)
    for key, value in ALL_ALIKE.items():
        settings.only(key, value)
    tree = llama.tree_of(settings, None)
    settings.skip(*WITHOUT_EFFECT)
    block: Any = tree.blocks[0]
    dense = block.edit(attention=attention(settings, block.attention))
    mixed = dense.edit(feed_forward=experts(settings, block.feed_forward))
    first = settings.size("first_k_dense_replace", 3, least=0)
    return tree.edit(blocks=tuple(dense if i < first else mixed for i in range(len(tree.blocks))))


def attention(settings: Settings, plain: Any) -> LatentAttention.Config:
    """Latent attention; `plain` is Llama's. Its norms have an epsilon of their own."""
    biased, bare = plain.query, plain.query.edit(bias=False)
    turned = settings.size("qk_rope_head_dim", 64)
    head_dim = turned + settings.size("qk_nope_head_dim", 128)
    layout = "interleaved" if settings.flag("rope_interleave", True) else "half"
    return LatentAttention.Config(
        heads=plain.heads,
        latent=settings.size("kv_lora_rank", 512),
        head_dim=head_dim,
        rotary_dim=turned,
        value_dim=settings.size("v_head_dim", 128),
        query_latent=settings.maybe("q_lora_rank", 1536),
        scale=growth(settings) ** 2 * head_dim**-0.5,
        dropout=plain.dropout,
        norm=RMSNorm.Config(eps=1e-6),
        rotary=rotary(settings, layout=layout),
        to_query_latent=biased,
        query=bare,
        to_latent=biased,
        rotary_key=biased,
        key=bare,
        value=bare,
        out=biased,
    )


def growth(settings: Settings) -> float:
    """What YaRN multiplies queries and keys by beside the cosines: `0.1 mscale ln(factor) + 1`."""
    words = {**settings.get("rope_scaling", {}), **settings.get("rope_parameters", {})}
    factor = max(words.get("factor") or 1.0, 1.0)
    return 0.1 * (words.get("mscale_all_dim") or 0.0) * math.log(factor) + 1.0


def experts(settings: Settings, dense: Any) -> Experts.Config:
    """The mixture; `dense` is the feed-forward of the layers that have none."""
    hidden = settings.size("moe_intermediate_size", 2048)
    return Experts.Config(
        count=settings.size("n_routed_experts", 256),
        top=settings.size("num_experts_per_tok", 8),
        expert=dense.edit(hidden=hidden),
        routing=SigmoidTopK(
            normalize=settings.flag("norm_topk_prob", True),
            scale=settings.number("routed_scaling_factor", 2.5),
            groups=settings.size("n_group", 8),
            top_groups=settings.size("topk_group", 4),
        ),
        router=dense.gate,
        shared=dense.edit(hidden=hidden * settings.size("n_shared_experts", 1)),
        correction=Zeros(),
    )


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    parts = [block.feed_forward for block in tree.blocks]
    latent = tree.blocks[0].attention
    norm = tree.norm
    dense: list[Any] = [part for part in parts if not isinstance(part, Experts.Config)]
    mixture: Any = next(part for part in parts if isinstance(part, Experts.Config))
    words, grown = describe_rotary(latent.rotary), latent.scale * latent.head_dim**0.5
    if words.get("factor", 1.0) > 1.0:
        words["mscale_all_dim"] = round(10.0 * (grown**0.5 - 1.0) / math.log(words["factor"]), 9)
    return {
        **sizes(tree),
        **describe_length(latent.rotary),
        "rope_parameters": words,
        "rope_interleave": latent.rotary.layout == "interleaved",
        "rms_norm_eps": norm.eps,
        "num_key_value_heads": latent.heads,
        "kv_lora_rank": latent.latent,
        "q_lora_rank": latent.query_latent,
        "qk_rope_head_dim": latent.rotary_dim,
        "qk_nope_head_dim": latent.head_dim - latent.rotary_dim,
        "v_head_dim": latent.value_dim or latent.head_dim - latent.rotary_dim,
        "attention_bias": latent.out.bias,
        "attention_dropout": latent.dropout,
        "hidden_act": THEIR_ACTIVATIONS[mixture.expert.activation],
        "intermediate_size": (dense or [mixture.expert])[0].hidden,
        "first_k_dense_replace": len(dense),
        "moe_intermediate_size": mixture.expert.hidden,
        "n_shared_experts": mixture.shared.hidden // mixture.expert.hidden,
        "n_routed_experts": mixture.count,
        "num_experts_per_tok": mixture.top,
        "norm_topk_prob": mixture.routing.normalize,
        "routed_scaling_factor": mixture.routing.scale,
        "n_group": mixture.routing.groups,
        "topk_group": mixture.routing.top_groups,
    }


def rules(tree: Any) -> Rules:
    """Llama's table and these parts; keys and values take turns head by head."""
    heads, direct = tree.blocks[0].attention.heads, tree.blocks[0].attention.query_latent is None
    return (
        *llama.RULES,
        *under(
            "blocks.*.attention",
            "model.layers.*.self_attn",
            turned("query", "q_proj" if direct else "q_b_proj"),
            turned("to_query_latent", "q_a_proj"),
            same("query_norm", "q_a_layernorm"),
            fused(("to_latent", "rotary_key"), "kv_a_proj_with_mqa"),
            same("latent_norm", "kv_a_layernorm"),
            fused(("key", "value"), "kv_b_proj", groups=heads),
        ),
        *under("blocks.*.feed_forward", "model.layers.*.mlp", *MIXTURE),
    )


MIXTURE = (
    turned("router", "gate"),
    same("correction", "gate.e_score_correction_bias"),
    stacked("experts.gate", "experts.#.gate_proj"),
    stacked("experts.up", "experts.#.up_proj"),
    stacked("experts.down", "experts.#.down_proj"),
    turned("shared.gate", "shared_experts.gate_proj"),
    turned("shared.up", "shared_experts.up_proj"),
    turned("shared.down", "shared_experts.down_proj"),
)

ARCHITECTURE = decoder(
    "deepseek_v3",
    "DeepseekV3",
    config,
    rules,
    ignored=("model.layers.61.*",),  # what predicts a second token, behind the last layer
    describe=describe,
)
