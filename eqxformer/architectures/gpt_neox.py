"""GPT-NeoX and Pythia: attention and feed-forward side by side, partly rotated heads, GELU."""

from typing import Any

from eqxformer.architectures._decoders import GPT_ACTIVATIONS, decoder, output, projections, sizes
from eqxformer.blocks.block import AbstractBlock, Block, ParallelBlock
from eqxformer.blocks.residual import pre_norm
from eqxformer.checkpoints.rope import describe_length, describe_rotary, rotary
from eqxformer.checkpoints.rules import Rules, fused, same, turned, under
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
    """The config tree of a GPT-NeoX."""
    settings.synonyms(rotary_emb_base="rope_theta", rotary_pct="partial_rotary_factor")
    settings.skip("max_position_embeddings", "attention_probs_dropout_prob", "hidden_dropout_prob")
    init, rate = Normal(settings.number("initializer_range", 0.02)), settings.rate("hidden_dropout")
    read = Linear.Config(settings.flag("attention_bias", True), init)
    norm = LayerNorm.Config(eps=settings.number("layer_norm_eps", 1e-5))
    attention = Attention.Config(
        heads=settings.size("num_attention_heads"),
        **projections(read),
        dropout=settings.rate("attention_dropout"),
        rotary=rotary(
            settings, base_key="rotary_emb_base", fraction_key="rotary_pct", fraction=0.25
        ),
    )
    wide = Linear.Config(init=init)
    feed_forward = MLP.Config(
        hidden=settings.size("intermediate_size"),
        activation=settings.activation("hidden_act", "gelu"),
        up=wide,
        down=wide,
    )
    block: AbstractBlock.Config = ParallelBlock.Config(attention, feed_forward, norm, norm, rate)
    if not settings.flag("use_parallel_residual", True):
        wiring = pre_norm(norm, rate)
        block = Block.Config(
            attention, feed_forward, attention_residual=wiring, feed_forward_residual=wiring
        )
    return DecoderLM.Config(
        vocab=settings.size("vocab_size"),
        dim=settings.size("hidden_size"),
        embedding=InputEmbedding.Config(tokens=Embedding.Config(init=init), dropout=rate),
        blocks=(block,) * settings.layers("num_hidden_layers"),
        norm=norm,
        head=output(
            settings,
            Linear.Config(False, init),
            "gpt_neox.embed_in.weight",
            tied=False,
            head="embed_out.weight",
        ),
    )


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    block, turned = tree.blocks[0], tree.blocks[0].attention.rotary
    return {
        **sizes(tree),
        **describe_length(turned),
        "intermediate_size": block.feed_forward.hidden,
        "hidden_act": GPT_ACTIVATIONS[block.feed_forward.activation],
        "layer_norm_eps": tree.norm.eps,
        "attention_bias": block.attention.query.bias,
        "attention_dropout": block.attention.dropout,
        "hidden_dropout": tree.embedding.dropout,
        "rope_parameters": {**describe_rotary(turned), "partial_rotary_factor": turned.fraction},
        "use_parallel_residual": isinstance(block, ParallelBlock.Config),
    }


def rules(tree: Any) -> Rules:
    """Where the arrays are; query, key and value take turns head by head."""
    names = ("attention.query", "attention.key", "attention.value")
    heads = tree.blocks[0].attention.heads
    return (
        same("embedding.tokens", "gpt_neox.embed_in"),
        *under(
            "blocks.*",
            "gpt_neox.layers.*",
            fused(names, "attention.query_key_value", groups=heads),
            turned("attention.out", "attention.dense"),
            turned("feed_forward.up", "mlp.dense_h_to_4h"),
            turned("feed_forward.down", "mlp.dense_4h_to_h"),
            same("norm", "input_layernorm"),
            same("feed_forward_norm", "post_attention_layernorm"),
            same("attention_residual.pre_norm", "input_layernorm"),
            same("feed_forward_residual.pre_norm", "post_attention_layernorm"),
        ),
        same("norm", "gpt_neox.final_layer_norm"),
        turned("head.linear", "embed_out"),
    )


ARCHITECTURE = decoder(
    "gpt_neox",
    "GPTNeoX",
    config,
    rules,
    prefix="gpt_neox.",
    questions="gpt_neox.",
    token_score=turned("head.linear", "classifier"),
    describe=describe,
)
