"""References with mixtures of experts: routers before and after the softmax, sinks, biases."""

import transformers as hf

import eqxformer as ef
from tests.parity.decoder_families import (
    ATTENTION,
    ENDS,
    GATED,
    HEAD_DIM,
    KV_HEADS,
    LLAMA_TREE,
    PRE_NORMS,
    QK_NORM,
    QWEN3_TREE,
    SIZES,
    decoder,
    rope,
)
from tests.parity.reference import Family
from tests.parity.weight_rules import From, turned

EXPERTS, TOP, EXPERT_HIDDEN = 4, 2, 48


def of_experts(name: str, half: int | None = None) -> From:
    """The experts' projections, stored as [experts, out, in]; `half` of two that are fused."""
    where = slice(None) if half is None else slice(half * EXPERT_HIDDEN, (half + 1) * EXPERT_HIDDEN)
    return From(name, lambda tensor: tensor[:, where].swapaxes(1, 2))


MIXTURE = {
    "blocks.*.feed_forward.router": turned("model.layers.*.mlp.gate"),
    "blocks.*.feed_forward.experts.gate": of_experts("model.layers.*.mlp.experts.gate_up_proj", 0),
    "blocks.*.feed_forward.experts.up": of_experts("model.layers.*.mlp.experts.gate_up_proj", 1),
    "blocks.*.feed_forward.experts.down": of_experts("model.layers.*.mlp.experts.down_proj"),
}

MIXTRAL = decoder(
    hf.MixtralForCausalLM,
    hf.MixtralConfig(
        **{**SIZES, "intermediate_size": EXPERT_HIDDEN},
        num_key_value_heads=KV_HEADS,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP,
        rope_parameters=rope(),
        experts_implementation="eager",
    ),
    LLAMA_TREE.edit(
        "blocks.*",
        feed_forward=ef.Experts.Config(
            count=EXPERTS,
            top=TOP,
            expert=ef.GatedMLP.Config(hidden=EXPERT_HIDDEN),
            routing=ef.TopKThenSoftmax(),
        ),
    ),
    {**ENDS, **ATTENTION, **PRE_NORMS, **MIXTURE},
)

# The first layer is dense; the weights of the chosen experts do not sum to one.
QWEN3_MOE = decoder(
    hf.Qwen3MoeForCausalLM,
    hf.Qwen3MoeConfig(
        **SIZES,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        moe_intermediate_size=EXPERT_HIDDEN,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP,
        norm_topk_prob=False,
        mlp_only_layers=[0],
        rope_parameters=rope(),
        experts_implementation="eager",
    ),
    QWEN3_TREE.edit(
        "blocks.1",
        feed_forward=ef.Experts.Config(
            count=EXPERTS,
            top=TOP,
            expert=ef.GatedMLP.Config(hidden=EXPERT_HIDDEN),
            routing=ef.SoftmaxThenTopK(normalize=False),
        ),
    ),
    {**ENDS, **ATTENTION, **QK_NORM, **GATED, **PRE_NORMS, **MIXTURE},
)


def interleaved(name: str, first: int | None = None) -> dict[str, From]:
    """A projection of the experts stored as [experts, in, out], and its bias; gate and up take
    every second column."""
    ours = {0: "gate", 1: "up", None: "down"}[first]
    step = slice(None) if first is None else slice(first, None, 2)
    stem = f"blocks.*.feed_forward.experts.{ours}"
    return {
        f"{stem}.weight": From(name, lambda tensor: tensor[..., step]),
        f"{stem}.bias": From(f"{name}_bias", lambda tensor: tensor[..., step]),
    }


BIASED = ef.Linear.Config()
GPT_OSS = decoder(
    hf.GptOssForCausalLM,
    hf.GptOssConfig(
        **{**SIZES, "intermediate_size": EXPERT_HIDDEN, "max_position_embeddings": 256},
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        sliding_window=4,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP,
        swiglu_limit=1.5,
        attn_implementation="eager",
        experts_implementation="eager",
        rope_parameters=rope(
            rope_type="yarn",
            factor=4.0,
            beta_fast=4.0,
            beta_slow=1.0,
            truncate=False,
            original_max_position_embeddings=64,
        ),
    ),
    LLAMA_TREE.edit(
        "blocks.*.attention",
        head_dim=HEAD_DIM,
        sinks=ef.Normal(0.02),
        rotary=ef.Rotary(scaling=ef.YaRN(factor=4.0, original_length=64, fast=4.0, rounded=False)),
        **dict.fromkeys(("query", "key", "value", "out"), BIASED),
    )
    .edit("blocks.0.attention", window=4)
    .edit(
        "blocks.*",
        feed_forward=ef.Experts.Config(
            count=EXPERTS,
            top=TOP,
            expert=ef.ClampedGatedMLP.Config(hidden=EXPERT_HIDDEN, limit=1.5),
            routing=ef.TopKThenSoftmax(),
            router=BIASED,
        ),
    ),
    {
        **ENDS,
        **ATTENTION,
        **PRE_NORMS,
        "blocks.*.attention.sinks": From("model.layers.*.self_attn.sinks"),
        "blocks.*.feed_forward.router": turned("model.layers.*.mlp.router"),
        **interleaved("model.layers.*.mlp.experts.gate_up_proj", 0),
        **interleaved("model.layers.*.mlp.experts.gate_up_proj", 1),
        **interleaved("model.layers.*.mlp.experts.down_proj"),
    },
)

EXPERT_DECODERS: dict[str, Family] = {
    "mixtral": MIXTRAL,
    "qwen3_moe": QWEN3_MOE,
    "gpt_oss": GPT_OSS,
}
