"""StableLM: Llama with LayerNorm and a quarter of a head rotated; 12B: norms per head, parallel."""

from typing import Any

from eqxformer.architectures import llama
from eqxformer.architectures._decoders import decoder, derived
from eqxformer.blocks.block import ParallelBlock
from eqxformer.checkpoints.moves import Same
from eqxformer.checkpoints.rope import describe_rotary, rotary
from eqxformer.checkpoints.rules import same, stacked
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.norms import LayerNorm
from eqxformer.models.decoder_lm import DecoderLM


def config(settings: Settings) -> DecoderLM.Config:
    """Llama's tree with those norms, biases of queries, keys and values, perhaps side by side."""
    settings.suppose(num_key_value_heads=32)
    settings.only("attention_bias", False)
    settings.only("mlp_bias", False)
    tree = llama.tree_of(settings, rotary(settings, fraction=0.25))
    norm = LayerNorm.Config(eps=settings.number("layer_norm_eps", 1e-5))
    tree = tree.edit("blocks.*.*_residual", pre_norm=norm).edit(norm=norm)
    biased = settings.flag("use_qkv_bias", False)
    for name in ("query", "key", "value"):
        tree = tree.edit(f"blocks.*.attention.{name}", bias=biased)
    if settings.flag("qk_layernorm", False):
        each = norm.edit(bias=False)
        tree = tree.edit("blocks.*.attention", qk_norm=each, qk_norm_over="each_head")
    if not settings.flag("use_parallel_residual", False):
        rate = settings.rate("hidden_dropout")
        return tree.edit("blocks.*.feed_forward_residual", dropout=rate)
    settings.only("hidden_dropout", 0.0)  # of one of the two branches
    block: Any = tree.blocks[0]
    parallel = ParallelBlock.Config(block.attention, block.feed_forward, norm)
    return tree.edit(blocks=(parallel,) * len(tree.blocks))


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    block, parent = tree.blocks[0], ("rms_norm_eps", "attention_bias", "mlp_bias", "head_dim")
    parallel, turned = isinstance(block, ParallelBlock.Config), block.attention.rotary
    return {
        **derived(llama.describe, *parent)(tree),
        "rope_parameters": {**describe_rotary(turned), "partial_rotary_factor": turned.fraction},
        "layer_norm_eps": tree.norm.eps,
        "use_qkv_bias": block.attention.query.bias,
        "qk_layernorm": block.attention.qk_norm is not None,
        "use_parallel_residual": parallel,
        "hidden_dropout": 0.0 if parallel else block.feed_forward_residual.dropout,
    }


RULES = (
    *llama.RULES,
    same("blocks.*.norm", "model.layers.*.input_layernorm"),
    stacked(
        "blocks.*.attention.query_norm", "model.layers.*.self_attn.q_layernorm.norms.#", Same()
    ),
    stacked("blocks.*.attention.key_norm", "model.layers.*.self_attn.k_layernorm.norms.#", Same()),
)

ARCHITECTURE = decoder("stablelm", "StableLm", config, RULES, describe=describe)
