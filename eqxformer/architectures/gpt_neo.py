"""GPT-Neo: GPT-2 with unscaled scores, and a window in every other layer."""

from itertools import chain, cycle, islice
from typing import Any

from eqxformer.architectures import gpt2
from eqxformer.architectures._decoders import GPT_ACTIVATIONS, decoder, output, projections, sizes
from eqxformer.blocks.block import Block
from eqxformer.blocks.residual import pre_norm
from eqxformer.checkpoints.rules import turned, under
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

WORDS = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}


def config(settings: Settings) -> DecoderLM.Config:
    """The config tree of a GPT-Neo."""
    settings.synonyms(**WORDS)
    settings.skip(*gpt2.WITHOUT_EFFECT)
    dim, rate = settings.size("hidden_size", 2048), settings.rate("resid_dropout")
    init = Normal(settings.number("initializer_range", 0.02))
    norm = LayerNorm.Config(eps=settings.number("layer_norm_epsilon", 1e-5))
    plain, linear = Linear.Config(False, init), Linear.Config(True, init)
    block = Block.Config(
        attention=Attention.Config(
            heads=settings.size("num_heads", 16),
            **projections(plain, linear),
            scale=1.0,
            dropout=settings.rate("attention_dropout"),
        ),
        feed_forward=MLP.Config(
            hidden=settings.size("intermediate_size", 4 * dim),
            activation=settings.activation("activation_function", "gelu_new"),
            up=linear,
            down=linear,
        ),
        attention_residual=pre_norm(norm, rate),
        feed_forward_residual=pre_norm(norm, rate),
    )
    length = settings.size("max_position_embeddings", 2048)
    return DecoderLM.Config(
        vocab=settings.size("vocab_size", 50257),
        dim=dim,
        embedding=InputEmbedding.Config(
            tokens=Embedding.Config(init=init),
            positions=LearnedPositions.Config(length, init=init),
            dropout=settings.rate("embed_dropout"),
        ),
        blocks=tuple(block.edit("attention", window=window) for window in _windows(settings)),
        norm=norm,
        head=output(settings, plain, "transformer.wte.weight", tied=True),
    )


def _windows(settings: Settings) -> list[int | None]:
    """The window of every layer, said in groups of layers or one by one."""
    window, layers = settings.size("window_size", 256), settings.layers("num_layers", 24)
    groups = settings.items("attention_types", [[["global", "local"], 12]])
    try:  # no more than are asked for, whatever the counts are
        said = (islice(cycle(kinds), len(kinds) * count) for kinds, count in groups)
        kinds = list(islice(chain.from_iterable(said), layers + 1))
    except (TypeError, ValueError):
        raise settings.wrong("attention_types", "pairs of words and a count", groups) from None
    kinds = settings.items("attention_layers", kinds)
    if len(kinds) != layers or not set(kinds) <= {"global", "local"}:
        raise settings.wrong("attention_types", f"global or local for {layers} layers", groups)
    return [window if kind == "local" else None for kind in kinds]


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    block, windows = tree.blocks[0], [block.attention.window for block in tree.blocks]
    kinds = ["global" if window is None else "local" for window in windows]
    return {
        **sizes(tree, **WORDS),
        "intermediate_size": block.feed_forward.hidden,
        "activation_function": GPT_ACTIVATIONS[block.feed_forward.activation],
        "max_position_embeddings": tree.embedding.positions.length,
        "layer_norm_epsilon": block.attention_residual.pre_norm.eps,
        "attention_types": [[kinds, 1]],
        "attention_layers": kinds,
        "window_size": next((w for w in windows if w is not None), 256),
        "embed_dropout": tree.embedding.dropout,
        "attention_dropout": block.attention.dropout,
        "resid_dropout": block.attention_residual.dropout,
    }


RULES = (
    *gpt2.RULES,
    *under(
        "blocks.*",
        "transformer.h.*",
        turned("attention.query", "attn.attention.q_proj"),
        turned("attention.key", "attn.attention.k_proj"),
        turned("attention.value", "attn.attention.v_proj"),
        turned("attention.out", "attn.attention.out_proj"),
        turned("feed_forward.up", "mlp.c_fc"),
        turned("feed_forward.down", "mlp.c_proj"),
    ),
)

ARCHITECTURE = decoder(
    "gpt_neo",
    "GPTNeo",
    config,
    RULES,
    prefix="transformer.",
    questions="transformer.",
    token_score=turned("head.linear", "classifier"),
    describe=describe,
)
