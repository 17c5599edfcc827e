"""Llama 1 to 3.x: rotary positions, RMS pre-norm, SwiGLU, grouped keys, no biases."""

from typing import Any

from eqxformer.architectures._decoders import decoder, output, sizes
from eqxformer.blocks.block import Block
from eqxformer.blocks.residual import pre_norm
from eqxformer.checkpoints.rope import describe_length, describe_rotary, rotary
from eqxformer.checkpoints.rules import same, turned, under
from eqxformer.checkpoints.settings import THEIR_ACTIVATIONS, Settings
from eqxformer.layers.attention import Attention
from eqxformer.layers.embedding import Embedding
from eqxformer.layers.feed_forward import GatedMLP
from eqxformer.layers.initializers import Normal
from eqxformer.layers.linear import Linear
from eqxformer.layers.norms import RMSNorm
from eqxformer.layers.rotary import Rotary
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.embedding import InputEmbedding


def config(settings: Settings) -> DecoderLM.Config:
    """The config tree of a Llama."""
    # Words of SmolLM's and Falcon3's files, and of the first Llama's.
    settings.only("rope_interleaved", False)
    settings.only("activation", "swiglu")
    settings.skip("is_llama_config", "max_sequence_length")
    return tree_of(settings, rotary(settings))


def tree_of(settings: Settings, positions: Rotary | None) -> DecoderLM.Config:
    """Llama's tree with these rotary positions, from which its relatives start."""
    init = Normal(settings.number("initializer_range", 0.02))
    heads, dim = settings.size("num_attention_heads"), settings.size("hidden_size")
    read = Linear.Config(bias=settings.flag("attention_bias", False), init=init)
    wide = Linear.Config(bias=settings.flag("mlp_bias", False), init=init)
    norm = RMSNorm.Config(eps=settings.number("rms_norm_eps", 1e-6))
    block = Block.Config(
        attention=Attention.Config(
            heads=heads,
            kv_heads=settings.size("num_key_value_heads", heads),
            head_dim=settings.size("head_dim", dim // heads),
            query=read,
            key=read,
            value=read,
            out=read,
            rotary=positions,
            dropout=settings.rate("attention_dropout"),
        ),
        feed_forward=GatedMLP.Config(
            hidden=settings.size("intermediate_size"),
            activation=settings.activation("hidden_act", "silu"),
            gate=wide,
            up=wide,
            down=wide,
        ),
        attention_residual=pre_norm(norm),
        feed_forward_residual=pre_norm(norm),
    )
    settings.skip("max_position_embeddings")
    return DecoderLM.Config(
        vocab=settings.size("vocab_size"),
        dim=dim,
        embedding=InputEmbedding.Config(tokens=Embedding.Config(init=init)),
        blocks=(block,) * settings.layers("num_hidden_layers"),
        norm=norm,
        head=output(settings, Linear.Config(False, init), "model.embed_tokens.weight", tied=False),
    )


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    block = tree.blocks[0]
    attention, feed_forward, norm = block.attention, block.feed_forward, tree.norm
    return {
        **sizes(tree),
        **describe_length(attention.rotary),
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": attention.head_dim or tree.dim // attention.heads,
        "intermediate_size": feed_forward.hidden,
        "hidden_act": THEIR_ACTIVATIONS[feed_forward.activation],
        "rms_norm_eps": norm.eps,
        "rope_parameters": describe_rotary(attention.rotary),
        "attention_bias": attention.query.bias,
        "mlp_bias": feed_forward.up.bias,
        "attention_dropout": attention.dropout,
    }


ATTENTION = under(
    "blocks.*.attention",
    "model.layers.*.self_attn",
    turned("query", "q_proj"),
    turned("key", "k_proj"),
    turned("value", "v_proj"),
    turned("out", "o_proj"),
)
FEED_FORWARD = under(
    "blocks.*.feed_forward",
    "model.layers.*.mlp",
    turned("gate", "gate_proj"),
    turned("up", "up_proj"),
    turned("down", "down_proj"),
)
RULES = (
    same("embedding.tokens", "model.embed_tokens"),
    *ATTENTION,
    *FEED_FORWARD,
    same("blocks.*.attention_residual.pre_norm", "model.layers.*.input_layernorm"),
    same("blocks.*.feed_forward_residual.pre_norm", "model.layers.*.post_attention_layernorm"),
    same("norm", "model.norm"),
    turned("head.linear", "lm_head"),
)

ARCHITECTURE = decoder("llama", "Llama", config, RULES, questions="transformer.", describe=describe)
