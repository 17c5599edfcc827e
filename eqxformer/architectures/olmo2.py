"""OLMo 2: Llama with its norms after the sublayers, and norms of all queries and of all keys."""

from eqxformer.architectures import llama, qwen3
from eqxformer.architectures._decoders import decoder, derived
from eqxformer.checkpoints.rope import rotary
from eqxformer.checkpoints.rules import same, under
from eqxformer.checkpoints.settings import Settings
from eqxformer.models.decoder_lm import DecoderLM


def config(settings: Settings) -> DecoderLM.Config:
    """Llama's tree with the norms inside the residual; those of queries span all heads."""
    settings.suppose(rms_norm_eps=1e-5)
    settings.only("mlp_bias", False)
    tree = llama.tree_of(settings, rotary(settings))
    tree = tree.edit("blocks.*.*_residual", pre_norm=None, post_norm=tree.norm)
    return tree.edit("blocks.*.attention", qk_norm=tree.norm, qk_norm_over="projection")


RULES = (
    *llama.RULES,
    *qwen3.QK_NORM,
    *under(
        "blocks.*",
        "model.layers.*",
        same("attention_residual.post_norm", "post_attention_layernorm"),
        same("feed_forward_residual.post_norm", "post_feedforward_layernorm"),
    ),
)

ARCHITECTURE = decoder(
    "olmo2",
    "Olmo2",
    config,
    RULES,
    lacks=("ForTokenClassification",),
    describe=derived(llama.describe, "mlp_bias"),
)
