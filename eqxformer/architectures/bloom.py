"""BLOOM: no positions but ALiBi, a norm right after the embedding, tanh GELU, pre-norm."""

from typing import Any

from eqxformer.architectures._decoders import decoder, output, projections, sizes
from eqxformer.blocks.block import Block
from eqxformer.blocks.residual import pre_norm
from eqxformer.checkpoints.rules import Rules, fused, same, turned, under
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.attention import Attention
from eqxformer.layers.biases import ALiBi
from eqxformer.layers.embedding import Embedding
from eqxformer.layers.feed_forward import MLP
from eqxformer.layers.initializers import Normal
from eqxformer.layers.linear import Linear
from eqxformer.layers.norms import LayerNorm
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.embedding import InputEmbedding

WORDS = {"n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
# How Megatron computed the same, and the length of the texts it was trained on.
WITHOUT_EFFECT = [
    "slow_but_exact",
    "masked_softmax_fusion",
    "bias_dropout_fusion",
    "attention_softmax_in_fp32",
    "skip_bias_add",
    "skip_bias_add_qkv",
    "offset_alibi",
    "seq_length",
]


def config(settings: Settings) -> DecoderLM.Config:
    """The config tree of a BLOOM."""
    settings.synonyms(**WORDS, hidden_size="n_embed")
    settings.skip(*WITHOUT_EFFECT)
    settings.only("apply_residual_connection_post_layernorm", False)
    dim, rate = settings.size("hidden_size"), settings.rate("hidden_dropout")
    settings.only("n_inner", 4 * dim)
    init = Normal(settings.number("initializer_range", 0.02))
    norm = LayerNorm.Config(eps=settings.number("layer_norm_epsilon", 1e-5))
    linear, wiring = Linear.Config(init=init), pre_norm(norm, rate)
    block = Block.Config(
        attention=Attention.Config(
            heads=settings.size("n_head"),
            **projections(linear),
            dropout=settings.rate("attention_dropout"),
        ),
        feed_forward=MLP.Config(hidden=4 * dim, activation="gelu_tanh", up=linear, down=linear),
        attention_residual=wiring,
        feed_forward_residual=wiring,
    )
    return DecoderLM.Config(
        vocab=settings.size("vocab_size"),
        dim=dim,
        embedding=InputEmbedding.Config(tokens=Embedding.Config(init=init), norm=norm),
        blocks=(block,) * settings.layers("n_layer"),
        norm=norm,
        head=output(
            settings,
            Linear.Config(False, init),
            "transformer.word_embeddings.weight",
            tied=True,
        ),
        bias=ALiBi.Config(),
    )


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    block = tree.blocks[0]
    return {
        **sizes(tree, **WORDS),
        "layer_norm_epsilon": tree.norm.eps,
        "hidden_dropout": block.attention_residual.dropout,
        "attention_dropout": block.attention.dropout,
    }


def rules(tree: Any) -> Rules:
    """Where the arrays are; the query heads of a group stand beside their key and value."""
    names, attention = ("query", "key", "value"), tree.blocks[0].attention
    qkv = tuple(f"attention.{name}" for name in names)
    groups = attention.kv_heads or attention.heads
    return (
        same("embedding.tokens", "transformer.word_embeddings"),
        same("embedding.norm", "transformer.word_embeddings_layernorm"),
        *under(
            "blocks.*",
            "transformer.h.*",
            fused(qkv, "self_attention.query_key_value", groups=groups),
            turned("attention.out", "self_attention.dense"),
            turned("feed_forward.up", "mlp.dense_h_to_4h"),
            turned("feed_forward.down", "mlp.dense_4h_to_h"),
            same("attention_residual.pre_norm", "input_layernorm"),
            same("feed_forward_residual.pre_norm", "post_attention_layernorm"),
        ),
        same("norm", "transformer.ln_f"),
        turned("head.linear", "lm_head"),
    )


ARCHITECTURE = decoder(
    "bloom",
    "Bloom",
    config,
    rules,
    prefix="transformer.",
    questions="transformer.",
    token_score=turned("head.linear", "classifier"),
    describe=describe,
)
