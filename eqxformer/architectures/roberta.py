"""RoBERTa: BERT whose positions start after the id of padding, with heads of its own names."""

from collections.abc import Mapping
from typing import Any

from eqxformer.architectures import bert
from eqxformer.architectures._decoders import derived
from eqxformer.architectures._encoders import (
    QUESTIONS,
    Head,
    encoder,
    masked,
    pooled,
    tokens,
)
from eqxformer.checkpoints.settings import Settings
from eqxformer.models.encoder import Encoder


def config(settings: Settings) -> Encoder.Config:
    """BERT's tree, with rows of the position table that no real token uses."""
    tree = bert.config(settings, pooler="roberta.pooler.dense")
    return shifted(tree, settings.size("pad_token_id", 1, least=0))


def shifted(tree: Encoder.Config, padding: int) -> Encoder.Config:
    """The tree with positions that start after the id of padding, whose own row comes before."""
    positions: Any = tree.embedding.positions
    unused = padding + 1
    return tree.edit("embedding.positions", offset=unused, length=positions.length - unused)


def rows(tree: Any) -> int:
    """All rows of the position table."""
    return tree.embedding.positions.length + tree.embedding.positions.offset


describe = derived(
    bert.describe,
    max_position_embeddings=rows,
    pad_token_id=lambda tree: tree.embedding.positions.offset - 1,
)
MASKED = masked(
    "lm_head.dense",
    "lm_head.layer_norm",
    "lm_head.decoder",
    bias="lm_head.bias",
    table="roberta.embeddings.word_embeddings.weight",
)
HEADS: Mapping[str, Head] = {
    "ForMaskedLM": MASKED,
    "ForSequenceClassification": pooled("classifier.dense", "classifier.out_proj", dropped="twice"),
    "ForTokenClassification": tokens(),
    "ForQuestionAnswering": QUESTIONS,
}

ARCHITECTURE = encoder(
    "roberta",
    "Roberta",
    config,
    bert.rules("roberta"),
    HEADS,
    prefix="roberta.",
    describe=describe,
)
