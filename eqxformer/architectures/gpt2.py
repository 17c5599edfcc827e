"""GPT-2: learned positions, pre-norm, tanh GELU, a tied head, one projection to q, k and v."""

from typing import Any

from eqxformer.architectures._decoders import GPT_ACTIVATIONS, decoder, output, projections, sizes
from eqxformer.blocks.block import Block
from eqxformer.blocks.residual import pre_norm
from eqxformer.checkpoints.rules import fused, same, turned, under
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.attention import Attention
from eqxformer.layers.embedding import Embedding
from eqxformer.layers.feed_forward import MLP
from eqxformer.layers.initializers import Normal
from eqxformer.layers.linear import Linear
from eqxformer.layers.norms import LayerNorm
from eqxformer.layers.positions import LearnedPositions
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.embedding import InputEmbedding

# Its own words and those of others.
WORDS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
}
# Those of the class with two heads, of older versions, and how numbers are rounded on the way.
WITHOUT_EFFECT = [
    "summary_type",
    "summary_use_proj",
    "summary_activation",
    "summary_proj_to_labels",
    "summary_first_dropout",
    "n_ctx",
    "n_special",
    "predict_special_tokens",
    "reorder_and_upcast_attn",
]


def config(settings: Settings) -> DecoderLM.Config:
    """The config tree of a GPT-2."""
    settings.synonyms(**WORDS)
    settings.skip(*WITHOUT_EFFECT)
    dim, layers = settings.size("n_embd", 768), settings.layers("n_layer", 12)
    std, rate = settings.number("initializer_range", 0.02), settings.rate("resid_pdrop", 0.1)
    init, norm = Normal(std), LayerNorm.Config(eps=settings.number("layer_norm_epsilon", 1e-5))
    reads, writes = Linear.Config(init=init), Linear.Config(init=Normal(std / (2 * layers) ** 0.5))
    block = Block.Config(
        attention=Attention.Config(
            heads=settings.size("n_head", 12),
            **projections(reads, writes),
            dropout=settings.rate("attn_pdrop", 0.1),
        ),
        feed_forward=MLP.Config(
            hidden=settings.size("n_inner", 4 * dim),
            activation=settings.activation("activation_function", "gelu_new"),
            up=reads,
            down=writes,
        ),
        attention_residual=pre_norm(norm, rate),
        feed_forward_residual=pre_norm(norm, rate),
    )
    scales = _scales(settings, dim // block.attention.heads, layers)
    return DecoderLM.Config(
        vocab=settings.size("vocab_size", 50257),
        dim=dim,
        embedding=InputEmbedding.Config(
            tokens=Embedding.Config(init=init),
            positions=LearnedPositions.Config(settings.size("n_positions", 1024), init=init),
            dropout=settings.rate("embd_pdrop", 0.1),
        ),
        blocks=tuple(block.edit("attention", scale=scale) for scale in scales),
        norm=norm,
        head=output(settings, Linear.Config(False, init), "transformer.wte.weight", tied=True),
    )


def _scales(settings: Settings, head_dim: int, layers: int) -> list[float | None]:
    """The factor of the scores in every layer; None for that of every transformer."""
    scaled = settings.flag("scale_attn_weights", True)
    if not settings.flag("scale_attn_by_inverse_layer_idx", False):
        return [None if scaled else 1.0] * layers
    return [(head_dim**-0.5 if scaled else 1.0) / (i + 1) for i in range(layers)]


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    first, last, embedding = tree.blocks[0], tree.blocks[-1], tree.embedding
    return {
        **sizes(tree, **WORDS),
        "n_positions": embedding.positions.length,
        "n_inner": first.feed_forward.hidden,
        "activation_function": GPT_ACTIVATIONS[first.feed_forward.activation],
        "layer_norm_epsilon": first.attention_residual.pre_norm.eps,
        "scale_attn_weights": first.attention.scale != 1.0,
        "scale_attn_by_inverse_layer_idx": last.attention.scale not in (None, 1.0),
        "embd_pdrop": embedding.dropout,
        "attn_pdrop": first.attention.dropout,
        "resid_pdrop": first.attention_residual.dropout,
    }


QUERY_KEY_VALUE = ("attention.query", "attention.key", "attention.value")
RULES = (
    same("embedding.tokens", "transformer.wte"),
    same("embedding.positions", "transformer.wpe"),
    *under(
        "blocks.*",
        "transformer.h.*",
        same("attention_residual.pre_norm", "ln_1"),
        fused(QUERY_KEY_VALUE, "attn.c_attn", turned=False),
        same("attention.out", "attn.c_proj"),
        same("feed_forward_residual.pre_norm", "ln_2"),
        same("feed_forward.up", "mlp.c_fc"),
        same("feed_forward.down", "mlp.c_proj"),
    ),
    same("norm", "transformer.ln_f"),
    turned("head.linear", "lm_head"),
)

ARCHITECTURE = decoder(
    "gpt2",
    "GPT2",
    config,
    RULES,
    prefix="transformer.",
    questions="transformer.",
    causal="LMHeadModel",
    token_score=turned("head.linear", "classifier"),
    describe=describe,
)
