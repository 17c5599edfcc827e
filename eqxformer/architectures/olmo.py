"""OLMo: Llama with LayerNorm that has no parameters, and bounded queries, keys and values."""

from eqxformer.architectures import llama
from eqxformer.architectures._decoders import decoder, derived
from eqxformer.checkpoints.rope import rotary
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.norms import LayerNorm
from eqxformer.models.decoder_lm import DecoderLM


def config(settings: Settings) -> DecoderLM.Config:
    """Llama's tree with those norms; null is no bound."""
    settings.only("mlp_bias", False)
    tree = llama.tree_of(settings, rotary(settings))
    norm = LayerNorm.Config(eps=1e-5, bias=False, gain=False)
    return (
        tree.edit("blocks.*.*_residual", pre_norm=norm)
        .edit("blocks.*.attention", clip=settings.number("clip_qkv", None))
        .edit(norm=norm)
    )


describe = derived(
    llama.describe,
    *("mlp_bias", "rms_norm_eps"),
    clip_qkv=lambda tree: tree.blocks[0].attention.clip,
)

ARCHITECTURE = decoder(
    "olmo",
    "Olmo",
    config,
    llama.RULES,
    lacks=("ForTokenClassification",),
    describe=describe,
)
