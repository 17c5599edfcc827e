"""BERT: learned positions, token types, post-norm, exact GELU, a pooler on the first token."""

import dataclasses
from typing import Any

from eqxformer.architectures._encoders import (
    QUESTIONS,
    encoder,
    layer,
    masked,
    pooled,
    tokens,
)
from eqxformer.blocks.block import Block
from eqxformer.blocks.residual import post_norm
from eqxformer.checkpoints.rules import Rules, same, turned, under
from eqxformer.checkpoints.settings import THEIR_ACTIVATIONS, Settings
from eqxformer.layers.activations import Activation
from eqxformer.layers.attention import Attention
from eqxformer.layers.embedding import Embedding
from eqxformer.layers.feed_forward import MLP
from eqxformer.layers.initializers import Normal
from eqxformer.layers.linear import Linear
from eqxformer.layers.norms import LayerNorm
from eqxformer.layers.positions import LearnedPositions
from eqxformer.models.embedding import InputEmbedding, TypeEmbedding
from eqxformer.models.encoder import Encoder
from eqxformer.models.label_heads import Pooling


def config(settings: Settings, *, pooler: str = "bert.pooler.dense") -> Encoder.Config:
    """The config tree of a BERT without a head; `pooler` is the name of what tells of a pooler."""
    return tree_of(settings, layers=settings.layers("num_hidden_layers"), pooler=pooler)


def tree_of(settings: Settings, *, layers: int, pooler: str) -> Encoder.Config:
    """The same with so many layers, from which its relatives start."""
    settings.only("position_embedding_type", "absolute")
    settings.only("directionality", "bidi")
    settings.only("pooler_type", "first_token_transform")
    settings.skip("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers")
    settings.skip("pooler_size_per_head")
    init = Normal(settings.number("initializer_range", 0.02))
    linear, rate = Linear.Config(init=init), settings.rate("hidden_dropout_prob", 0.1)
    norm = LayerNorm.Config(eps=settings.number("layer_norm_eps", 1e-12))
    block = Block.Config(
        attention=Attention.Config(
            heads=settings.size("num_attention_heads"),
            dropout=settings.rate("attention_probs_dropout_prob", 0.1),
            query=linear,
            key=linear,
            value=linear,
            out=linear,
        ),
        feed_forward=MLP.Config(
            hidden=settings.size("intermediate_size"),
            activation=activation(settings),
            up=linear,
            down=linear,
        ),
        attention_residual=post_norm(norm, rate),
        feed_forward_residual=post_norm(norm, rate),
    )
    return Encoder.Config(
        vocab=settings.size("vocab_size"),
        dim=settings.size("hidden_size"),
        embedding=InputEmbedding.Config(
            tokens=Embedding.Config(init=init),
            positions=LearnedPositions.Config(settings.size("max_position_embeddings"), init=init),
            types=TypeEmbedding.Config(settings.size("type_vocab_size", 2), init=init),
            norm=norm,
            dropout=rate,
        ),
        blocks=(block,) * layers,
        pooling=Pooling.Config("first", linear)
        if settings.holds(f"{pooler}.weight")
        else Pooling.Config(),
    )


def activation(settings: Settings) -> Activation:
    """That of the feed-forwards, which the head for masked tokens has too."""
    return settings.activation("hidden_act", "gelu")


def describe(tree: Encoder.Config) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    block: Any = tree.blocks[0]
    embedding: Any = tree.embedding
    types = {} if embedding.types is None else {"type_vocab_size": embedding.types.count}
    return {
        **types,
        "vocab_size": tree.vocab,
        "hidden_size": tree.dim,
        "num_hidden_layers": len(tree.blocks),
        "num_attention_heads": block.attention.heads,
        "intermediate_size": block.feed_forward.hidden,
        "hidden_act": THEIR_ACTIVATIONS[block.feed_forward.activation],
        "layer_norm_eps": embedding.norm.eps,
        "max_position_embeddings": embedding.positions.length,
        "hidden_dropout_prob": block.attention_residual.dropout,
        "attention_probs_dropout_prob": block.attention.dropout,
    }


BLOCK = (
    turned("attention.query", "attention.self.query"),
    turned("attention.key", "attention.self.key"),
    turned("attention.value", "attention.self.value"),
    turned("attention.out", "attention.output.dense"),
    same("attention_residual.out_norm", "attention.output.LayerNorm"),
    turned("feed_forward.up", "intermediate.dense"),
    turned("feed_forward.down", "output.dense"),
    same("feed_forward_residual.out_norm", "output.LayerNorm"),
)
EMBEDDING = (
    same("tokens", "word_embeddings"),
    same("positions", "position_embeddings"),
    same("types", "token_type_embeddings"),
    same("norm", "LayerNorm"),
)


def rules(prefix: str) -> Rules:
    """Where the arrays of a BERT are, given what the names of its tensors begin with."""
    return (
        *under("embedding", f"{prefix}.embeddings", *EMBEDDING),
        *under("blocks.*", f"{prefix}.encoder.layer.*", *BLOCK),
        turned("pooling.dense", f"{prefix}.pooler.dense"),
    )


MASKED = masked(
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.decoder",
    bias="cls.predictions.bias",
    table="bert.embeddings.word_embeddings.weight",
    first=layer(activation),
)

ARCHITECTURE = encoder(
    "bert",
    "Bert",
    config,
    rules("bert"),
    {
        "ForMaskedLM": MASKED,
        "ForPreTraining": dataclasses.replace(MASKED, saved_as="ForMaskedLM"),
        "ForSequenceClassification": pooled("bert.pooler.dense"),
        "ForTokenClassification": tokens(),
        "ForQuestionAnswering": QUESTIONS,
    },
    prefix="bert.",
    ignored=("cls.seq_relationship.*",),
    describe=describe,
)
