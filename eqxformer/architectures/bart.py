"""BART: learned positions two rows on, a norm of the embedding, post-norm, a bias of the logits."""

from typing import Any, Literal

from eqxformer.architectures._seq2seq import HEAD, seq2seq, token_head
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
    """The config tree of a BART; architectures that change it start from here."""
    settings.skip(*OLD, "encoder_layerdrop", "decoder_layerdrop")
    table = "model.shared.weight"
    settings.copies(table, "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
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
            head=token_head(settings, table, Linear.Config(init=init)),
        ),
        tokens="shared",
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


# What files of before version 4 say of the wiring, which the `model_type` says since.
OLD = (
    "normalize_before",
    "normalize_embedding",
    "add_final_layer_norm",
    "add_bias_logits",
    "static_position_embeddings",
    "extra_pos_embeddings",
)
