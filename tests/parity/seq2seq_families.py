"""Encoder-decoder references: T5 1.0 and 1.1, BART, and Marian with its sinusoids."""

from typing import Any

import jax.numpy as jnp
import torch
import transformers as hf
from jaxtyping import Array

import eqxformer as ef
from tests.parity.decoder_families import DIM, HEADS, HIDDEN
from tests.parity.reference import SEQ, SOURCE, VOCAB, Batch, Family, hidden, watched
from tests.parity.weight_rules import From, turned, under

READERS, WRITERS = 1, 2  # the depths of the two sides differ


def theirs(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Logits, and what enters each block of either side."""
    out = model(
        input_ids=batch.source,
        attention_mask=batch.source_valid.long(),
        decoder_input_ids=batch.tokens,
        decoder_attention_mask=batch.valid.long(),
        output_hidden_states=True,
        use_cache=False,
    )
    return {
        **hidden(out.encoder_hidden_states[:-1], ".source"),
        **hidden(out.decoder_hidden_states[:-1], ".target"),
        "logits": out.logits,
    }


def ours(model: ef.EncoderDecoder, batch: Batch, **more: Any) -> dict[str, Array]:
    """The same of our model, with padding on either side."""
    model, source_seen = watched(model, lambda m: m.encoder.blocks)
    model, target_seen = watched(model, lambda m: m.decoder.blocks)
    logits = model(
        batch.source,
        batch.tokens,
        source_mask=ef.Padding(batch.source_valid),
        mask=ef.Padding(batch.valid),
        **more,
    )
    return {
        **hidden(source_seen, ".source"),
        **hidden(target_seen, ".target"),
        "logits": logits,
    }


def ours_with_padding_counted(model: ef.EncoderDecoder, batch: Batch) -> dict[str, Array]:
    """For references that count positions from the row's first place, padding or not."""
    places = {"source_positions": jnp.arange(SOURCE), "positions": jnp.arange(SEQ)}
    return ours(model, batch, **places)


def t5_side(name: str, feed_forward: dict[str, From], layer: int) -> dict[str, From]:
    """One side of T5, whose blocks hold the feed-forward as their `layer`-th part."""
    attention = {part: turned(part[0]) for part in ("query", "key", "value", "out")}
    block = {
        **under("attention", "layer.0.SelfAttention", attention),
        "attention_residual.pre_norm": From("layer.0.layer_norm"),
        **under("feed_forward", f"layer.{layer}.DenseReluDense", feed_forward),
        "feed_forward_residual.pre_norm": From(f"layer.{layer}.layer_norm"),
    }
    if layer == 2:
        block |= under("cross_attention", "layer.1.EncDecAttention", attention)
        block |= {"cross_residual.pre_norm": From("layer.1.layer_norm")}
    return {
        **under(f"{name}.blocks.*", f"{name}.block.*", block),
        f"{name}.norm": From(f"{name}.final_layer_norm"),
        f"{name}.bias": From(f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias"),
    }


def t5_rules(**feed_forward: str) -> dict[str, From]:
    """All of T5 but an output of its own."""
    parts = {part: turned(name) for part, name in feed_forward.items()}
    return {
        "encoder.embedding.tokens": From("shared"),
        **t5_side("encoder", parts, 1),
        **t5_side("decoder", parts, 2),
    }


def t5(**settings: Any) -> hf.T5ForConditionalGeneration:
    """A reference with buckets so few that these short texts reach those of several distances."""
    config = hf.T5Config(
        vocab_size=VOCAB,
        d_model=DIM,
        d_kv=5,
        d_ff=HIDDEN,
        num_layers=READERS,
        num_decoder_layers=WRITERS,
        num_heads=HEADS,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=9,
        **settings,
    )
    model = hf.T5ForConditionalGeneration(config)
    if not config.scale_decoder_outputs:  # 1.1 has an output of its own, which this version ties
        model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCAB, DIM) * DIM**-0.5)
    return model


T5_TREE = ef.families.t5(
    vocab=VOCAB, dim=DIM, layers=WRITERS, heads=HEADS, head_dim=5, hidden=HIDDEN
).edit("*.bias", buckets=8, max_distance=9)
T5_TREE = T5_TREE.edit("encoder", blocks=T5_TREE.encoder.blocks[:READERS])
T5 = Family(t5, T5_TREE, t5_rules(up="wi", down="wo"), theirs, ours)

T5_V11 = Family(
    lambda: t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    T5_TREE.edit(
        "*.blocks.*", feed_forward=ef.GatedMLP.Config(hidden=HIDDEN, activation="gelu_tanh")
    ).edit("decoder", head=ef.LinearHead.Config()),
    {**t5_rules(gate="wi_0", up="wi_1", down="wo"), "decoder.head.linear": turned("lm_head")},
    theirs,
    ours,
)


def bart_side(name: str, *, cross: bool) -> dict[str, From]:
    """One side of BART or Marian; the last norm of a block is called `final`."""

    def attention(ours: str, theirs: str) -> dict[str, From]:
        parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
        return under(ours, theirs, {part: turned(name) for part, name in parts.items()})

    block = {
        **attention("attention", "self_attn"),
        "attention_residual.out_norm": From("self_attn_layer_norm"),
        "feed_forward.up": turned("fc1"),
        "feed_forward.down": turned("fc2"),
        "feed_forward_residual.out_norm": From("final_layer_norm"),
    }
    if cross:
        block |= attention("cross_attention", "encoder_attn")
        block |= {"cross_residual.out_norm": From("encoder_attn_layer_norm")}
    return under(f"{name}.blocks.*", f"model.{name}.layers.*", block)


BART_SIZES = {
    "vocab_size": VOCAB,
    "d_model": DIM,
    "encoder_layers": READERS,
    "decoder_layers": WRITERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": HIDDEN,
    "decoder_ffn_dim": HIDDEN,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": 1,
}


def bart_tree(embedding: ef.InputEmbedding.Config, activation: str) -> ef.EncoderDecoder.Config:
    """Post-norm on both sides, one table of tokens, a bias of the logits."""
    tree = ef.families.transformer(vocab=VOCAB, dim=DIM, layers=WRITERS, heads=HEADS, hidden=HIDDEN)
    return (
        tree.edit("encoder", blocks=tree.encoder.blocks[:READERS])
        .edit("*", embedding=embedding)
        .edit("*.blocks.*.feed_forward", activation=activation)
        .edit("decoder", head=ef.TiedHead.Config(bias=True))
        .edit(tokens="shared")
    )


BART_RULES = {
    "encoder.embedding.tokens": From("model.shared"),
    "decoder.head.bias": From("final_logits_bias", lambda bias: bias[0]),
    **bart_side("encoder", cross=False),
    **bart_side("decoder", cross=True),
}
BART = Family(
    lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART_SIZES)),
    bart_tree(
        ef.InputEmbedding.Config(
            positions=ef.LearnedPositions.Config(length=16, offset=2),
            norm=ef.LayerNorm.Config(),
        ),
        "gelu",
    ),
    {
        **BART_RULES,
        "encoder.embedding.positions": From("model.encoder.embed_positions"),
        "encoder.embedding.norm": From("model.encoder.layernorm_embedding"),
        "decoder.embedding.positions": From("model.decoder.embed_positions"),
        "decoder.embedding.norm": From("model.decoder.layernorm_embedding"),
    },
    theirs,
    ours_with_padding_counted,
    buffers=("final_logits_bias",),
)

# Marian computes its sinusoids: sines in the first half, cosines in the second.
MARIAN = Family(
    lambda: hf.MarianMTModel(
        hf.MarianConfig(**BART_SIZES, scale_embedding=True, activation_function="swish")
    ),
    bart_tree(
        ef.InputEmbedding.Config(scale="sqrt(dim)", positions=ef.Sinusoids.Config(layout="halves")),
        "silu",
    ),
    BART_RULES,
    theirs,
    ours_with_padding_counted,
    buffers=("final_logits_bias",),
)

SEQ2SEQ = {"t5": T5, "t5_v1_1": T5_V11, "bart": BART, "marian": MARIAN}
