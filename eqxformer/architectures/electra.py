"""ELECTRA: BERT without a pooler, whose tables may be narrower than the model."""

from typing import Any

from eqxformer.architectures import bert
from eqxformer.architectures._encoders import (
    QUESTIONS,
    encoder,
    layer,
    masked,
    pooled,
    tokens,
)
from eqxformer.checkpoints.rules import turned
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.linear import Linear
from eqxformer.models.encoder import Encoder


def config(settings: Settings) -> Encoder.Config:
    """BERT's tree, with a projection where the tables have a width of their own."""
    settings.skip("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout")
    tree = bert.config(settings, pooler="electra.pooler.dense")
    width = settings.size("embedding_size", 128)
    if width == tree.dim:
        return tree
    project = Linear.Config(init=tree.embedding.tokens.init)
    return tree.edit("embedding", width=width, project=project)


def describe(tree: Encoder.Config) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    return {**bert.describe(tree), "embedding_size": tree.embedding.width or tree.dim}


RULES = (*bert.rules("electra"), turned("embedding.project", "electra.embeddings_project"))

ARCHITECTURE = encoder(
    "electra",
    "Electra",
    config,
    RULES,
    {
        "ForPreTraining": tokens(
            "discriminator_predictions.dense_prediction",
            "discriminator_predictions.dense",
            rate=lambda _: 0.0,
            first=layer(bert.activation),
            labels=lambda _: 1,
        ),
        "ForMaskedLM": masked(
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "generator_lm_head",
            table="electra.embeddings.word_embeddings.weight",
        ),
        "ForSequenceClassification": pooled(
            "classifier.dense",
            "classifier.out_proj",
            first=layer(),
            dropped="twice",
        ),
        "ForTokenClassification": tokens(),
        "ForQuestionAnswering": QUESTIONS,
    },
    prefix="electra.",
    describe=describe,
)
