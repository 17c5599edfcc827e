"""Granite: Llama with four factors: of embeddings, attention scores, residual branches, logits."""

from typing import Any

from eqxformer.architectures import llama
from eqxformer.architectures._decoders import decoder
from eqxformer.checkpoints.rope import rotary
from eqxformer.checkpoints.settings import Settings
from eqxformer.models.decoder_lm import DecoderLM


def config(settings: Settings) -> DecoderLM.Config:
    """Llama's tree with the factors; the logits are divided by theirs."""
    tree = llama.tree_of(settings, rotary(settings))
    return (
        tree.edit("embedding", scale=settings.number("embedding_multiplier", 1.0))
        .edit("blocks.*.attention", scale=settings.number("attention_multiplier", 1.0))
        .edit("blocks.*.*_residual", scale=settings.number("residual_multiplier", 1.0))
        .edit("head", scale=1.0 / settings.number("logits_scaling", 1.0))
    )


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    block = tree.blocks[0]
    head = tree.head
    found, scale = llama.describe(tree), block.attention.scale
    return {
        **found,
        "embedding_multiplier": tree.embedding.scale,
        "attention_multiplier": found["head_dim"] ** -0.5 if scale is None else scale,
        "residual_multiplier": block.attention_residual.scale,
        "logits_scaling": 1.0 / head.scale,
    }


ARCHITECTURE = decoder(
    "granite",
    "Granite",
    config,
    llama.RULES,
    lacks=("ForSequenceClassification", "ForTokenClassification"),
    describe=describe,
)
