"""GPT-OSS: Llama with sinks, a window in every other layer, and experts with bounded gates."""

from typing import Any

from eqxformer.architectures import llama
from eqxformer.architectures._decoders import decoder, derived
from eqxformer.architectures._layer_types import (
    FULL,
    SLIDING,
    describe_windows,
    layer_types,
    windowed,
)
from eqxformer.checkpoints.rope import rotary
from eqxformer.checkpoints.rules import Rules, fused, same, turned, under
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.experts import Experts, TopKThenSoftmax
from eqxformer.layers.feed_forward import ClampedGatedMLP, GatedMLP
from eqxformer.layers.linear import Linear
from eqxformer.models.decoder_lm import DecoderLM

YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


WEIGHTS = ("experts.gate.weight", "experts.up.weight")
BIASES = ("experts.gate.bias", "experts.up.bias")


def config(settings: Settings) -> DecoderLM.Config:
    """Llama's tree with sinks, windows and experts."""
    settings.synonyms(num_local_experts="num_experts", num_experts_per_tok="experts_per_token")
    settings.suppose(attention_bias=True, head_dim=64, rms_norm_eps=1e-5)
    if all(settings.values.get(key) is None for key in ("rope_scaling", "rope_parameters")):
        settings.values["rope_scaling"] = YARN
    settings.skip("initial_context_length", "output_router_logits", "router_aux_loss_coef")
    settings.only("mlp_bias", False)
    tree = llama.tree_of(settings, rotary(settings, base=150_000.0))
    init = tree.embedding.tokens.init
    linear = Linear.Config(init=init)
    block: Any = tree.blocks[0]
    experts = Experts.Config(
        count=settings.size("num_local_experts", 128),
        top=settings.size("num_experts_per_tok", 4),
        expert=ClampedGatedMLP.Config(
            hidden=block.feed_forward.hidden,
            alpha=settings.number("swiglu_alpha", 1.702),
            limit=settings.number("swiglu_limit", 7.0),
            gate=linear,
            up=linear,
            down=linear,
        ),
        routing=TopKThenSoftmax(),
        router=linear,
    )
    tree = tree.edit("blocks.*.attention", sinks=init).edit("blocks.*", feed_forward=experts)
    types = layer_types(settings, [(SLIDING, FULL)[i % 2] for i in range(len(tree.blocks))])
    return windowed(tree, types, settings.maybe("sliding_window", 128))


def describe(tree: DecoderLM.Config) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    block: Any = tree.blocks[0]
    experts = block.feed_forward
    dense = tree.edit("blocks.*", feed_forward=GatedMLP.Config(hidden=experts.expert.hidden))
    return {
        **derived(llama.describe, "mlp_bias")(dense),
        **describe_windows(tree),
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.top,
        "swiglu_alpha": experts.expert.alpha,
        "swiglu_limit": experts.expert.limit,
    }


def rules(tree: Any) -> Rules:
    """Where the arrays are; the columns of gate and up alternate."""
    hidden = tree.blocks[0].feed_forward.expert.hidden
    return (
        *llama.RULES,
        same("blocks.*.attention.sinks", "model.layers.*.self_attn.sinks"),
        *under(
            "blocks.*.feed_forward",
            "model.layers.*.mlp",
            turned("router", "router"),
            fused(WEIGHTS, "experts.gate_up_proj", groups=hidden, turned=False),
            fused(BIASES, "experts.gate_up_proj_bias", groups=hidden, turned=False),
            same("experts.down.weight", "experts.down_proj"),
            same("experts.down.bias", "experts.down_proj_bias"),
        ),
    )


ARCHITECTURE = decoder("gpt_oss", "GptOss", config, rules, describe=describe)
