"""ALBERT: BERT with narrow tables, whose layers share their weights, all or in groups."""

import collections
import dataclasses
from typing import Any

from eqxformer.architectures import bert
from eqxformer.architectures._decoders import GPT_ACTIVATIONS
from eqxformer.architectures._encoders import (
    QUESTIONS,
    encoder,
    layer,
    linear_of,
    masked,
    pooled,
    tokens,
)
from eqxformer.blocks.repeated import Repeated
from eqxformer.checkpoints.rules import same, turned, under
from eqxformer.checkpoints.settings import Settings
from eqxformer.models.encoder import Encoder

_MOST = 1000  # of layers and of blocks: the first need no tensors of their own here


def config(settings: Settings) -> Encoder.Config:
    """BERT's tree with each group of layers as one block that is run several times over."""
    settings.synonyms(classifier_dropout="classifier_dropout_prob")
    settings.suppose(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    settings.suppose(classifier_dropout=0.1, hidden_act="gelu_new")
    for key, value in {"down_scale_factor": 1, "gap_size": 0, "num_memory_blocks": 0}.items():
        settings.only(key, value)
    settings.skip("net_structure_type", "layers_to_keep")
    tree = bert.tree_of(settings, layers=1, pooler="albert.pooler")
    tree = tree.edit("blocks.*.feed_forward_residual", dropout=0.0)
    width = settings.size("embedding_size", 128)
    tree = tree.edit("embedding", width=width, project=linear_of(tree))
    inner, times = settings.layers("inner_group_num", 1), _times(settings)
    if inner * len(times) > _MOST:
        raise settings.wrong("inner_group_num", f"at most {_MOST} blocks in all", inner)
    return tree.edit(blocks=tuple(Repeated.Config(tree.blocks * inner, each) for each in times))


def _times(settings: Settings) -> list[int]:
    """How often each group is run: the layers are divided among them in order."""
    layers, groups = settings.size("num_hidden_layers"), settings.layers("num_hidden_groups", 1)
    if layers > _MOST:
        raise settings.wrong("num_hidden_layers", f"at most {_MOST}", layers)
    counts = collections.Counter(int(i / (layers / groups)) for i in range(layers))
    return [counts[group] for group in range(groups)]


def describe(tree: Encoder.Config) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    groups: Any = tree.blocks
    block = groups[0].blocks[0]
    layers = sum(group.times for group in groups)
    return {
        **bert.describe(tree.edit(blocks=(block,) * layers)),
        "hidden_act": GPT_ACTIVATIONS[block.feed_forward.activation],
        "embedding_size": tree.embedding.width,
        "num_hidden_groups": len(groups),
        "inner_group_num": len(groups[0].blocks),
    }


BLOCK = (
    *under("attention", "attention", *(turned(name, name) for name in ("query", "key", "value"))),
    turned("attention.out", "attention.dense"),
    same("attention_residual.out_norm", "attention.LayerNorm"),
    turned("feed_forward.up", "ffn"),
    turned("feed_forward.down", "ffn_output"),
    same("feed_forward_residual.out_norm", "full_layer_layer_norm"),
)
LAYER = "albert.encoder.albert_layer_groups.*.albert_layers.*"
RULES = (
    *under("embedding", "albert.embeddings", *bert.EMBEDDING),
    turned("embedding.project", "albert.encoder.embedding_hidden_mapping_in"),
    *under("blocks.*.blocks.*", LAYER, *BLOCK),
    turned("pooling.dense", "albert.pooler"),
)
MASKED = masked(
    "predictions.dense",
    "predictions.LayerNorm",
    "predictions.decoder",
    bias="predictions.bias",
    table="albert.embeddings.word_embeddings.weight",
    first=layer(bert.activation),
)

ARCHITECTURE = encoder(
    "albert",
    "Albert",
    config,
    RULES,
    {
        "ForMaskedLM": MASKED,
        "ForPreTraining": dataclasses.replace(MASKED, saved_as="ForMaskedLM"),
        "ForSequenceClassification": pooled("albert.pooler"),
        "ForTokenClassification": tokens(),
        "ForQuestionAnswering": QUESTIONS,
    },
    prefix="albert.",
    ignored=("sop_classifier.*",),
    describe=describe,
)
