"""StarCoder2: Llama with biases, LayerNorm, and a plain feed-forward with a tanh GELU."""

from typing import Any

from eqxformer.architectures import llama
from eqxformer.architectures._decoders import decoder, derived
from eqxformer.architectures._layer_types import windowed_throughout
from eqxformer.blocks.residual import pre_norm
from eqxformer.checkpoints.rope import rotary
from eqxformer.checkpoints.rules import turned
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.feed_forward import MLP
from eqxformer.layers.norms import LayerNorm
from eqxformer.models.decoder_lm import DecoderLM


def config(settings: Settings) -> DecoderLM.Config:
    """Llama's tree with those parts, and dropout of embeddings and of what a layer adds."""
    settings.suppose(num_key_value_heads=2, hidden_act="gelu_pytorch_tanh")
    settings.suppose(initializer_range=0.018042, tie_word_embeddings=True)
    settings.only("norm_type", "layer_norm")
    settings.only("mlp_type", "default")
    for key in ("attention_bias", "mlp_bias"):
        settings.only(key, False)  # `use_bias` is what counts
    tree = llama.tree_of(settings, rotary(settings))
    block: Any = tree.blocks[0]
    linear = block.attention.query.edit(bias=settings.flag("use_bias", True))
    gated = block.feed_forward
    plain = MLP.Config(gated.hidden, gated.activation, up=linear, down=linear)
    norm = LayerNorm.Config(eps=settings.number("norm_epsilon", 1e-5))
    wiring = pre_norm(norm, settings.rate("residual_dropout"))
    tree = (
        tree.edit("blocks.*", attention_residual=wiring, feed_forward_residual=wiring)
        .edit("blocks.*", feed_forward=plain)
        .edit("blocks.*.attention", query=linear, key=linear, value=linear, out=linear)
        .edit("embedding", dropout=settings.rate("embedding_dropout"))
        .edit(norm=norm)
    )
    return windowed_throughout(settings, tree)


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    block = tree.blocks[0]
    return {
        **derived(llama.describe, "attention_bias", "mlp_bias", "rms_norm_eps")(tree),
        "norm_epsilon": block.attention_residual.pre_norm.eps,
        "use_bias": block.attention.query.bias,
        "embedding_dropout": tree.embedding.dropout,
        "residual_dropout": block.attention_residual.dropout,
        "sliding_window": block.attention.window,
    }


RULES = (
    *llama.RULES,
    turned("blocks.*.feed_forward.up", "model.layers.*.mlp.c_fc"),
    turned("blocks.*.feed_forward.down", "model.layers.*.mlp.c_proj"),
)

ARCHITECTURE = decoder("starcoder2", "Starcoder2", config, RULES, describe=describe)
