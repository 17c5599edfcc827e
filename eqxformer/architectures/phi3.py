"""Phi-3 and Phi-4: Llama with fused projections, LongRoPE, on some models part of a head turned."""

from typing import Any

from eqxformer.architectures import llama
from eqxformer.architectures._decoders import decoder, derived
from eqxformer.architectures._layer_types import windowed_throughout
from eqxformer.checkpoints.rope import rotary
from eqxformer.checkpoints.rules import fused
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.rotary import LongRoPE
from eqxformer.models.decoder_lm import DecoderLM


def config(settings: Settings) -> DecoderLM.Config:
    """Llama's tree without biases, with dropout of what a layer adds."""
    settings.suppose(rms_norm_eps=1e-5, original_max_position_embeddings=4096)
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        settings.only(key, False)
    for key in ("full_attn_mod", "interpolate_factor"):
        settings.only(key, 1)
    settings.skip("embd_pdrop", "original_max_position_embeddings")
    positions = rotary(settings, fraction=1.0)
    if not isinstance(positions.scaling, LongRoPE | None):
        found = settings.get("rope_scaling", None) or settings.get("rope_parameters", None)
        raise settings.wrong("rope_scaling", "null or of the type longrope", found)
    tree = llama.tree_of(settings, positions)
    tree = tree.edit("blocks.*.*_residual", dropout=settings.rate("resid_pdrop"))
    return windowed_throughout(settings, tree)


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    found = derived(llama.describe, "attention_bias", "mlp_bias")(tree)
    block = tree.blocks[0]
    original = found["rope_parameters"].get("original_max_position_embeddings")
    return {
        **found,
        **({} if original is None else {"original_max_position_embeddings": original}),
        "resid_pdrop": block.attention_residual.dropout,
        "sliding_window": block.attention.window,
    }


QUERY_KEY_VALUE = tuple(f"blocks.*.attention.{name}" for name in ("query", "key", "value"))
GATE_UP = ("blocks.*.feed_forward.gate", "blocks.*.feed_forward.up")
RULES = (
    *llama.RULES,
    fused(QUERY_KEY_VALUE, "model.layers.*.self_attn.qkv_proj"),
    fused(GATE_UP, "model.layers.*.mlp.gate_up_proj"),
)

ARCHITECTURE = decoder("phi3", "Phi3", config, RULES, describe=describe)
