"""Phi-1 to Phi-2: attention and feed-forward side by side behind one norm, biases everywhere."""

from typing import Any

from eqxformer.architectures import llama
from eqxformer.architectures._decoders import GPT_ACTIVATIONS, decoder, output, projections, sizes
from eqxformer.blocks.block import ParallelBlock
from eqxformer.checkpoints.rope import describe_length, describe_rotary, rotary
from eqxformer.checkpoints.rules import same, turned, under
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.attention import Attention
from eqxformer.layers.embedding import Embedding
from eqxformer.layers.feed_forward import MLP
from eqxformer.layers.initializers import Normal
from eqxformer.layers.linear import Linear
from eqxformer.layers.norms import LayerNorm
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.embedding import InputEmbedding


def config(settings: Settings) -> DecoderLM.Config:
    """The config tree of a Phi."""
    settings.skip("max_position_embeddings")
    init, heads = Normal(settings.number("initializer_range", 0.02)), "num_attention_heads"
    norm = LayerNorm.Config(eps=settings.number("layer_norm_eps", 1e-5))
    linear = Linear.Config(init=init)
    block = ParallelBlock.Config(
        attention=Attention.Config(
            heads=settings.size(heads),
            kv_heads=settings.size("num_key_value_heads", settings.size(heads)),
            **projections(linear),
            qk_norm=norm if settings.flag("qk_layernorm", False) else None,
            rotary=rotary(settings, fraction=0.5),
            dropout=settings.rate("attention_dropout"),
        ),
        feed_forward=MLP.Config(
            hidden=settings.size("intermediate_size"),
            activation=settings.activation("hidden_act", "gelu_new"),
            up=linear,
            down=linear,
        ),
        norm=norm,
        dropout=settings.rate("resid_pdrop"),
    )
    return DecoderLM.Config(
        vocab=settings.size("vocab_size"),
        dim=settings.size("hidden_size"),
        embedding=InputEmbedding.Config(
            tokens=Embedding.Config(init=init), dropout=settings.rate("embd_pdrop")
        ),
        blocks=(block,) * settings.layers("num_hidden_layers"),
        norm=norm,
        head=output(settings, linear, "model.embed_tokens.weight", tied=False),
    )


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    block = tree.blocks[0]
    attention, feed_forward, turned = block.attention, block.feed_forward, block.attention.rotary
    return {
        **sizes(tree),
        **describe_length(turned),
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "intermediate_size": feed_forward.hidden,
        "hidden_act": GPT_ACTIVATIONS[feed_forward.activation],
        "layer_norm_eps": tree.norm.eps,
        "qk_layernorm": attention.qk_norm is not None,
        "rope_parameters": {**describe_rotary(turned), "partial_rotary_factor": turned.fraction},
        "attention_dropout": attention.dropout,
        "embd_pdrop": tree.embedding.dropout,
        "resid_pdrop": block.dropout,
    }


RULES = (
    *llama.RULES,
    *under(
        "blocks.*",
        "model.layers.*",
        same("norm", "input_layernorm"),
        turned("attention.out", "self_attn.dense"),
        same("attention.query_norm", "self_attn.q_layernorm"),
        same("attention.key_norm", "self_attn.k_layernorm"),
        turned("feed_forward.up", "mlp.fc1"),
        turned("feed_forward.down", "mlp.fc2"),
    ),
    same("norm", "model.final_layernorm"),
    turned("head", "lm_head"),
)

ARCHITECTURE = decoder("phi", "Phi", config, RULES, describe=describe)
