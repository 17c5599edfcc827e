"""Command R: Llama's parts side by side behind one LayerNorm, interleaved pairs, scaled logits."""

from typing import Any

from eqxformer.architectures import llama, qwen3
from eqxformer.architectures._decoders import decoder, derived
from eqxformer.blocks.block import ParallelBlock
from eqxformer.checkpoints.rope import rotary
from eqxformer.checkpoints.rules import same
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.norms import LayerNorm
from eqxformer.models.decoder_lm import DecoderLM


def config(settings: Settings) -> DecoderLM.Config:
    """Llama's tree with parallel blocks, and a norm for each head of queries and keys."""
    settings.suppose(tie_word_embeddings=True)
    settings.skip("model_max_length")
    settings.only("mlp_bias", False)
    tree = llama.tree_of(settings, rotary(settings, base=500_000.0, layout="interleaved"))
    norm = LayerNorm.Config(eps=settings.number("layer_norm_eps", 1e-5), bias=False)
    block: Any = tree.blocks[0]
    attention = block.attention
    if settings.flag("use_qk_norm", False):
        attention = attention.edit(qk_norm=norm, qk_norm_over="each_head")
    parallel = ParallelBlock.Config(attention, block.feed_forward, norm)
    tree = tree.edit(blocks=(parallel,) * len(tree.blocks), norm=norm)
    return tree.edit("head", scale=settings.number("logit_scale", 0.0625))


describe = derived(
    llama.describe,
    *("rms_norm_eps", "mlp_bias", "head_dim"),
    layer_norm_eps=lambda tree: tree.norm.eps,
    use_qk_norm=lambda tree: tree.blocks[0].attention.qk_norm is not None,
    logit_scale=lambda tree: tree.head.scale,
)

RULES = (*qwen3.RULES, same("blocks.*.norm", "model.layers.*.input_layernorm"))

ARCHITECTURE = decoder(
    "cohere",
    "Cohere",
    config,
    RULES,
    lacks=("ForSequenceClassification", "ForTokenClassification"),
    describe=describe,
)
