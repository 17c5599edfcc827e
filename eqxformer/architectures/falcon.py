"""Falcon: few key heads, parallel blocks behind one norm or two; RW: ALiBi and plain blocks."""

from typing import Any

from eqxformer.architectures import bloom
from eqxformer.architectures._decoders import decoder, output, projections, sizes
from eqxformer.blocks.block import AbstractBlock, Block, ParallelBlock
from eqxformer.blocks.residual import pre_norm
from eqxformer.checkpoints.rope import describe_length, describe_rotary, rotary
from eqxformer.checkpoints.rules import Rules, same, turned, under
from eqxformer.checkpoints.settings import THEIR_ACTIVATIONS, Settings
from eqxformer.layers.attention import Attention
from eqxformer.layers.biases import ALiBi
from eqxformer.layers.embedding import Embedding
from eqxformer.layers.feed_forward import MLP
from eqxformer.layers.initializers import Normal
from eqxformer.layers.linear import Linear
from eqxformer.layers.norms import LayerNorm, Norm
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.embedding import InputEmbedding


def config(settings: Settings) -> DecoderLM.Config:
    """The config tree of a Falcon."""
    settings.synonyms(hidden_size="n_embed")
    settings.skip("max_position_embeddings", "ff_factor", "rope_theta", "rope_scaling")
    settings.skip("rope_parameters")  # where there is ALiBi
    settings.only("apply_residual_connection_post_layernorm", False)
    dim, heads = settings.size("hidden_size"), settings.size("num_attention_heads")
    init, alibi = Normal(settings.number("initializer_range", 0.02)), settings.flag("alibi", False)
    linear = Linear.Config(settings.flag("bias", False), init)
    kv_heads = 1 if settings.flag("multi_query", True) else heads
    if settings.flag("new_decoder_architecture", False):
        kv_heads = settings.size("num_kv_heads", heads)
    settings.only("num_kv_heads", kv_heads, heads)
    attention = Attention.Config(
        heads=heads,
        kv_heads=kv_heads,
        **projections(linear),
        rotary=None if alibi else rotary(settings),
        dropout=settings.rate("attention_dropout"),
    )
    feed_forward = MLP.Config(
        hidden=settings.size("ffn_hidden_size", 4 * dim),
        activation=settings.activation("activation", "gelu"),
        up=linear,
        down=linear,
    )
    norm = LayerNorm.Config(eps=settings.number("layer_norm_epsilon", 1e-5))
    # Scores and bias are scaled together, and the bias is computed in bfloat16.
    bias = ALiBi.Config(scale=(dim // heads) ** -0.5, rounding="bfloat16")
    return DecoderLM.Config(
        vocab=settings.size("vocab_size"),
        dim=dim,
        embedding=InputEmbedding.Config(tokens=Embedding.Config(init=init)),
        blocks=(_block(settings, attention, feed_forward, norm),)
        * settings.layers("num_hidden_layers"),
        norm=norm,
        head=output(
            settings,
            Linear.Config(False, init),
            "transformer.word_embeddings.weight",
            tied=True,
        ),
        bias=bias if alibi else None,
    )


def _block(
    settings: Settings, attention: Attention.Config, feed_forward: MLP.Config, norm: Norm.Config
) -> AbstractBlock.Config:
    """The block: side by side behind one norm or two, or one after the other."""
    rate, new = settings.rate("hidden_dropout"), settings.flag("new_decoder_architecture", False)
    settings.only("num_ln_in_parallel_attn", 1, 2 if new else 1)
    settings.only("parallel_attn", True, new)
    if settings.flag("parallel_attn", True):
        two = settings.size("num_ln_in_parallel_attn", 2 if new else 1) == 2
        return ParallelBlock.Config(attention, feed_forward, norm, norm if two else None, rate)
    return Block.Config(
        attention,
        feed_forward,
        attention_residual=pre_norm(norm, attention.dropout),
        feed_forward_residual=pre_norm(norm, rate),
    )


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    block = tree.blocks[0]
    attention, feed_forward = block.attention, block.feed_forward
    parallel, kv_heads = isinstance(block, ParallelBlock.Config), attention.kv_heads
    norms = 2 if parallel and block.feed_forward_norm is not None else 1
    new = norms == 2 or kv_heads not in (1, attention.heads)
    places = {} if tree.bias else {"rope_parameters": describe_rotary(attention.rotary)}
    return {
        **sizes(tree),
        **places,
        **describe_length(attention.rotary),
        "num_kv_heads": kv_heads,
        "new_decoder_architecture": new,
        "multi_query": kv_heads == 1,
        "num_ln_in_parallel_attn": norms,
        "parallel_attn": parallel,
        "alibi": tree.bias is not None,
        "bias": attention.query.bias,
        "ffn_hidden_size": feed_forward.hidden,
        "activation": THEIR_ACTIVATIONS[feed_forward.activation],
        "layer_norm_epsilon": tree.norm.eps,
        "attention_dropout": attention.dropout,
        "hidden_dropout": block.dropout if parallel else block.feed_forward_residual.dropout,
    }


def rules(tree: Any) -> Rules:
    """Where the arrays are: in BLOOM's places but for the norms of parallel blocks."""
    two = getattr(tree.blocks[0], "feed_forward_norm", None) is not None
    return (
        *bloom.rules(tree),
        *under(
            "blocks.*",
            "transformer.h.*",
            same("norm", "ln_attn" if two else "input_layernorm"),
            same("feed_forward_norm", "ln_mlp"),
        ),
    )


ARCHITECTURE = decoder(
    "falcon",
    "Falcon",
    config,
    rules,
    prefix="transformer.",
    questions="transformer.",
    token_score=turned("head.linear", "classifier"),
    describe=describe,
)
