"""Encoder-only references: BERT with its heads, and ModernBERT."""

from typing import Any

import torch
import transformers as hf
from jaxtyping import Array

import eqxformer as ef
from tests.parity.decoder_families import DIM, HEADS, HIDDEN, LAYERS, rope
from tests.parity.reference import VOCAB, Batch, Family, hidden, watched
from tests.parity.weight_rules import From, turned, turned_part, under


def settings(layers: int) -> hf.BertConfig:
    """Their config."""
    return hf.BertConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        intermediate_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        max_position_embeddings=16,
        num_labels=3,
    )


def tree(layers: int) -> ef.Encoder.Config:
    """Ours."""
    return ef.families.bert(
        vocab=VOCAB, dim=DIM, layers=layers, heads=HEADS, hidden=HIDDEN, context=16
    )


BODY = {
    **under(
        "embedding",
        "bert.embeddings",
        {
            "tokens": From("word_embeddings"),
            "positions": From("position_embeddings"),
            "types": From("token_type_embeddings"),
            "norm": From("LayerNorm"),
        },
    ),
    **under(
        "blocks.*",
        "bert.encoder.layer.*",
        {
            "attention.query": turned("attention.self.query"),
            "attention.key": turned("attention.self.key"),
            "attention.value": turned("attention.self.value"),
            "attention.out": turned("attention.output.dense"),
            "attention_residual.out_norm": From("attention.output.LayerNorm"),
            "feed_forward.up": turned("intermediate.dense"),
            "feed_forward.down": turned("output.dense"),
            "feed_forward_residual.out_norm": From("output.LayerNorm"),
        },
    ),
}
POOLER = {"pooling.dense": turned("bert.pooler.dense")}


def _ask(batch: Batch) -> dict[str, Any]:
    return {
        "input_ids": batch.tokens,
        "attention_mask": batch.valid.long(),
        "token_type_ids": batch.types,
        "position_ids": (batch.valid.long().cumsum(-1) - 1).clamp(min=0),
        "output_hidden_states": True,
    }


def their_masked_lm(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    out = model.bert(**_ask(batch))
    logits = model.cls.predictions(out.last_hidden_state)
    return {**hidden(out.hidden_states[:-1]), "logits": logits, "pooled": out.pooler_output}


def our_masked_lm(model: ef.EncoderWithHead, batch: Batch) -> dict[str, Array]:
    encoder, seen = watched(model.encoder, lambda m: m.blocks)
    states = encoder(batch.tokens, mask=ef.Padding(batch.valid), types=batch.types)
    logits = model.head(states, encoder.embedding.table())
    return {**hidden(seen), "logits": logits, "pooled": encoder.pooling(states, batch.valid)}


def their_scores(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    return {"scores": model(**_ask(batch)).logits}


def our_scores(model: ef.EncoderWithHead, batch: Batch) -> dict[str, Array]:
    return {"scores": model(batch.tokens, mask=ef.Padding(batch.valid), types=batch.types)}


BERT = Family(
    lambda: hf.BertForPreTraining(settings(LAYERS)),
    ef.EncoderWithHead.Config(
        tree(LAYERS), ef.MaskedLMHead.Config(norm=ef.LayerNorm.Config(eps=1e-12))
    ),
    {
        **{f"encoder.{path}": rule for path, rule in {**BODY, **POOLER}.items()},
        "head.dense": turned("cls.predictions.transform.dense"),
        "head.norm": From("cls.predictions.transform.LayerNorm"),
        "head.output.bias": From("cls.predictions.bias"),
    },
    their_masked_lm,
    our_masked_lm,
    unused=("cls.seq_relationship",),
)

# A classifier pools by itself; the encoder's own pooling has no layer then.
CLASSIFIER = Family(
    lambda: hf.BertForSequenceClassification(settings(1)),
    ef.EncoderWithHead.Config(tree(1).edit(pooling=ef.Pooling.Config()), ef.SequenceHead.Config(3)),
    {
        **{f"encoder.{path}": rule for path, rule in BODY.items()},
        "head.pooling.dense": turned("bert.pooler.dense"),
        "head.linear": turned("classifier"),
    },
    their_scores,
    our_scores,
)


def their_modern(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    asked = {key: each for key, each in _ask(batch).items() if key != "token_type_ids"}
    out = model(**asked)
    return {**hidden(out.hidden_states[:-1]), "logits": out.logits}


def our_modern(model: ef.EncoderWithHead, batch: Batch) -> dict[str, Array]:
    model, seen = watched(model, lambda m: m.encoder.blocks)
    return {"logits": model(batch.tokens, mask=ef.Padding(batch.valid)), **hidden(seen)}


# No biases; the first attention has no norm; the second looks three tokens either way and turns
# at another base. Masked-token logits have a bias, their layer has none.
PLAIN, NORM = ef.Linear.Config(bias=False), ef.LayerNorm.Config(bias=False)
GLOBAL = ef.Block.Config(
    attention=ef.Attention.Config(
        heads=HEADS,
        rotary=ef.Rotary(base=500.0),
        **dict.fromkeys(("query", "key", "value", "out"), PLAIN),
    ),
    feed_forward=ef.GatedMLP.Config(hidden=HIDDEN, activation="gelu"),
    attention_residual=ef.Residual.Config(),
    feed_forward_residual=ef.pre_norm(NORM),
)
LOCAL = GLOBAL.edit(attention_residual=ef.pre_norm(NORM)).edit(
    "attention", window=(3, 3), rotary=ef.Rotary(base=100.0)
)
MODERNBERT = Family(
    lambda: hf.ModernBertForMaskedLM(
        hf.ModernBertConfig(
            vocab_size=VOCAB,
            hidden_size=DIM,
            intermediate_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            local_attention=6,
            rope_parameters={
                "full_attention": rope(rope_theta=500.0),
                "sliding_attention": rope(rope_theta=100.0),
            },
            **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1),
            pad_token_id=0,
        )
    ),
    ef.EncoderWithHead.Config(
        ef.Encoder.Config(
            vocab=VOCAB,
            dim=DIM,
            blocks=(GLOBAL, LOCAL),
            embedding=ef.InputEmbedding.Config(norm=NORM),
            norm=NORM,
        ),
        ef.MaskedLMHead.Config(dense=PLAIN, norm=NORM),
    ),
    {
        "head.dense": turned("head.dense"),
        "head.norm": From("head.norm"),
        "head.output.bias": From("decoder.bias"),
        **under(
            "encoder",
            "model",
            {
                "embedding.tokens": From("embeddings.tok_embeddings"),
                "embedding.norm": From("embeddings.norm"),
                "norm": From("final_norm"),
            },
        ),
        **under(
            "encoder.blocks.*",
            "model.layers.*",
            {
                "attention_residual.pre_norm": From("attn_norm"),
                "attention.query": turned_part("attn.Wqkv", 0, of=3),
                "attention.key": turned_part("attn.Wqkv", 1, of=3),
                "attention.value": turned_part("attn.Wqkv", 2, of=3),
                "attention.out": turned("attn.Wo"),
                "feed_forward_residual.pre_norm": From("mlp_norm"),
                "feed_forward.gate": turned_part("mlp.Wi", 0, of=2),
                "feed_forward.up": turned_part("mlp.Wi", 1, of=2),
                "feed_forward.down": turned("mlp.Wo"),
            },
        ),
    },
    their_modern,
    our_modern,
)

ENCODERS = {"bert": BERT, "bert_classifier": CLASSIFIER, "modernbert": MODERNBERT}
