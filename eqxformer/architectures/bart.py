"""BART: learned positions two rows on, a norm of the embedding, post-norm, a bias of the logits."""

from typing import Any, Literal

from eqxformer.architectures._seq2seq import HEAD, Labelled, one_table, seq2seq
from eqxformer.blocks.block import Block
from eqxformer.blocks.residual import post_norm
from eqxformer.checkpoints.rules import Rules, same, turned, under
from eqxformer.checkpoints.settings import THEIR_ACTIVATIONS, Settings
from eqxformer.layers.attention import Attention
from eqxformer.layers.embedding import Embedding
from eqxformer.layers.feed_forward import MLP
from eqxformer.layers.initializers import Normal
from eqxformer.layers.linear import Linear
from eqxformer.layers.norms import LayerNorm
from eqxformer.layers.positions import LearnedPositions
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.embedding import InputEmbedding
from eqxformer.models.encoder import Encoder
from eqxformer.models.encoder_decoder import EncoderDecoder

Side = Literal["encoder", "decoder"]


def config(settings: Settings) -> EncoderDecoder.Config:
    """The config tree of a BART."""
    return one_table(settings, sides(settings), Linear.Config())


def sides(settings: Settings) -> EncoderDecoder.Config:
    """Both sides but for the head and what they share; architectures like it start from here."""
    settings.skip(*WITHOUT_USE)
    vocab, dim = settings.size("vocab_size"), settings.size("d_model")
    init = Normal(settings.number("init_std", 0.02))
    embedding = InputEmbedding.Config(
        tokens=Embedding.Config(init=init),
        scale="sqrt(dim)" if settings.flag("scale_embedding", False) else 1.0,
        positions=LearnedPositions.Config(
            settings.size("max_position_embeddings", 1024), offset=2, init=init
        ),
        norm=LayerNorm.Config(),
        dropout=settings.rate("dropout", 0.1),
    )
    return EncoderDecoder.Config(
        encoder=Encoder.Config(
            vocab=vocab, dim=dim, embedding=embedding, blocks=_blocks(settings, "encoder")
        ),
        decoder=DecoderLM.Config(
            vocab=vocab,
            dim=dim,
            embedding=embedding,
            blocks=_blocks(settings, "decoder"),
            norm=None,
        ),
    )


def _blocks(settings: Settings, side: Side) -> tuple[Block.Config, ...]:
    linear = Linear.Config(init=Normal(settings.number("init_std", 0.02)))
    attention = Attention.Config(
        heads=settings.size(f"{side}_attention_heads"),
        dropout=settings.rate("attention_dropout"),
        query=linear,
        key=linear,
        value=linear,
        out=linear,
    )
    wiring = post_norm(dropout=settings.rate("dropout", 0.1))
    block = Block.Config(
        attention=attention,
        cross_attention=attention if side == "decoder" else None,
        feed_forward=MLP.Config(
            hidden=settings.size(f"{side}_ffn_dim"),
            activation=settings.activation("activation_function", "gelu"),
            dropout=settings.rate("activation_dropout"),
            up=linear,
            down=linear,
        ),
        attention_residual=wiring,
        cross_residual=wiring,
        feed_forward_residual=wiring,
    )
    return (block,) * settings.layers(f"{side}_layers")


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    embedding = tree.encoder.embedding
    return {
        **describe_blocks(tree),
        "vocab_size": tree.encoder.vocab,
        "max_position_embeddings": getattr(embedding.positions, "length", 512),
        "scale_embedding": embedding.scale == "sqrt(dim)",
        "tie_word_embeddings": True,  # of the two sides; the file tells whether the head is too
    }


def describe_blocks(tree: Any) -> dict[str, Any]:
    """The settings of the blocks of both sides."""
    found: dict[str, Any] = {}
    for side, blocks in (("encoder", tree.encoder.blocks), ("decoder", tree.decoder.blocks)):
        found[f"{side}_layers"] = len(blocks)
        found[f"{side}_attention_heads"] = blocks[0].attention.heads
        found[f"{side}_ffn_dim"] = blocks[0].feed_forward.hidden
    block = tree.encoder.blocks[0]
    return {
        **found,
        # Another name of `encoder_layers`, which goes before it where both are there.
        "num_hidden_layers": found["encoder_layers"],
        "d_model": tree.encoder.dim,
        "activation_function": THEIR_ACTIVATIONS[block.feed_forward.activation],
        "dropout": tree.encoder.embedding.dropout,
        "attention_dropout": block.attention.dropout,
        "activation_dropout": block.feed_forward.dropout,
    }


def _side(name: Side) -> Rules:
    def attention(ours: str, theirs: str) -> Rules:
        parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
        return under(ours, theirs, *(turned(*pair) for pair in parts.items()))

    def norm(ours: str, theirs: str) -> Rules:
        return same(f"{ours}.out_norm", theirs), same(f"{ours}.pre_norm", theirs)

    block = (
        *attention("attention", "self_attn"),
        *norm("attention_residual", "self_attn_layer_norm"),
        *attention("cross_attention", "encoder_attn"),
        *norm("cross_residual", "encoder_attn_layer_norm"),
        turned("feed_forward.up", "fc1"),
        turned("feed_forward.down", "fc2"),
        *norm("feed_forward_residual", "final_layer_norm"),
    )
    return under(
        name,
        f"model.{name}",
        same("embedding.positions", "embed_positions"),
        same("embedding.norm", "layernorm_embedding"),
        *under("blocks.*", "layers.*", *block),
        same("norm", "layer_norm"),
    )


RULES = (
    same("encoder.embedding.tokens", "model.shared"),
    *_side("encoder"),
    *_side("decoder"),
    *HEAD,
)
IGNORED = ("*.version",)
# Of training; and what files of before version 4 say of the wiring, which `model_type` says since.
WITHOUT_USE = [
    "encoder_layerdrop",
    "decoder_layerdrop",
    "classifier_dropout",
    "classif_dropout",
    "num_hidden_layers",
    "force_bos_token_to_be_generated",
    "save_step",
    "replacing_rate",
    "student_encoder_layers",
    "student_decoder_layers",
    "normalize_before",
    "normalize_embedding",
    "add_final_layer_norm",
    "add_bias_logits",
    "static_position_embeddings",
    "extra_pos_embeddings",
]

ARCHITECTURE = seq2seq(
    "bart",
    "Bart",
    config,
    RULES,
    prefix="model.",
    labelled=Labelled(start=2, end=2, prefix="model."),
    ignored=IGNORED,
    describe=describe,
)
