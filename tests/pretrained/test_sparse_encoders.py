"""Directories of SPLADE: a transformer with its head for masked tokens, and nothing else."""

import numpy as np
import pytest

import eqxformer as ef
from eqxformer.pretrained.sentences import pooling_of
from tests.helpers.hostile import refused
from tests.helpers.models import filled
from tests.pretrained.test_sentences import BERT, TOKENS, write

SPARSE = "sentence_transformers.sparse_encoder.models.{}"


def sparse(first, path=""):
    """The `modules.json` of SPLADE, with this transformer."""
    return [
        {"idx": 0, "name": "0", "path": path, "type": SPARSE.format(first)},
        {"idx": 1, "name": "1", "path": "1_SpladePooling", "type": SPARSE.format("SpladePooling")},
    ]


@pytest.mark.parametrize(
    ("first", "task"), [("MLMTransformer", None), ("Transformer", "fill-mask")]
)
def test_a_sparse_encoder_is_its_transformer_with_the_head_for_masked_tokens(first, task, tmp_path):
    head = ef.MaskedLMHead.Config(norm=BERT.config.embedding.norm)
    body = BERT.config.edit(pooling=ef.Pooling.Config())
    model, folder = filled(ef.EncoderWithHead.Config(body, head)), tmp_path / "splade"
    ef.save_pretrained(model, folder, model_type="bert")
    write(folder, "modules.json", sparse(first))
    write(folder, "1_SpladePooling/config.json", {"pooling_strategy": "max"})
    if task is not None:
        write(folder, "sentence_bert_config.json", {"transformer_task": task})
    again = ef.from_pretrained(folder)
    assert isinstance(again, ef.EncoderWithHead)
    assert np.array_equal(again(TOKENS), model(TOKENS))


def test_other_sparse_encoders_are_refused(tmp_path):
    for modules in (sparse("MLMTransformer", "0_Transformer"), sparse("Transformer")):
        write(tmp_path, "modules.json", modules)
        refused(lambda: pooling_of(tmp_path), "the modules must be", "SpladePooling")
