"""Encoder-only references: BERT with its pooler and masked-token head, and with a classifier."""

import torch
import transformers as hf
from decoder_families import DIM, HEADS, HIDDEN, LAYERS
from jaxtyping import Array
from reference import VOCAB, Batch, Family, hidden, watched
from weight_rules import From, turned, under

import eqxformer as ef


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


def _ask(model: torch.nn.Module, batch: Batch) -> dict:
    return {
        "input_ids": batch.tokens,
        "attention_mask": batch.valid.long(),
        "token_type_ids": batch.types,
        "position_ids": (batch.valid.long().cumsum(-1) - 1).clamp(min=0),
        "output_hidden_states": True,
    }


def their_masked_lm(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    out = model.bert(**_ask(model, batch))
    logits = model.cls.predictions(out.last_hidden_state)
    return {**hidden(out.hidden_states[:-1]), "logits": logits, "pooled": out.pooler_output}


def our_masked_lm(model: ef.EncoderWithHead, batch: Batch) -> dict[str, Array]:
    encoder, seen = watched(model.encoder, lambda m: m.blocks)
    states = encoder(batch.tokens, mask=ef.Padding(batch.valid), types=batch.types)
    logits = model.head(states, encoder.embedding.table())
    return {**hidden(seen), "logits": logits, "pooled": encoder.pooling(states, batch.valid)}


def their_scores(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    return {"scores": model(**_ask(model, batch)).logits}


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

ENCODERS = {"bert": BERT, "bert_classifier": CLASSIFIER}
