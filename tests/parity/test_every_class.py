"""Every class that an architecture can be used as is read whole from what transformers writes."""

import json

import pytest
import transformers as hf

import eqxformer as ef
from eqxformer.pretrained import Checkpoint
from eqxformer.pretrained.checkpoint import Said
from tests.parity.cases import CASES
from tests.parity.live import store

# The second head of those classes: whether two texts, or in this order, follow on each other.
LEFT = {
    "AlbertForPreTraining": "sop_classifier.classifier",
    "BertForPreTraining": "cls.seq_relationship",
}
GONE = {"T5WithLMHeadModel"}  # names in old files
# What is removed where the states alone are wanted of a class that may have lost its head.
REMOVED = {"MT5Model": "tie_word_embeddings"}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ef.model_types() for name in ef.architecture(kind).tasks],
)
def test_every_tensor_of_every_class_is_read(kind, name, tmp_path):
    cls = getattr(hf, name, None)
    if cls is None:
        assert name in GONE
        return
    store(cls(cls.config_class(**CASES[kind].settings)), tmp_path)
    if name in REMOVED:
        with pytest.raises(ef.CheckpointError, match=f"remove `{REMOVED[name]}`"):
            Checkpoint(tmp_path)
        said = json.loads((tmp_path / "config.json").read_text())
        del said[REMOVED[name]]
        (tmp_path / "config.json").write_text(json.dumps(said))
    checkpoint = Checkpoint(tmp_path)
    assert (checkpoint.architecture.model_type, checkpoint.class_name) == (kind, name)
    assert type(Said(tmp_path).tree(None)) is type(checkpoint.config)
    names = {name for b in checkpoint.bindings for name in b.theirs} | checkpoint.stored.repeats
    left = set(checkpoint.files.names) - {checkpoint.stored.find(name) for name in names}
    assert left == (
        {f"{LEFT[name]}.{end}" for end in ("weight", "bias")} if name in LEFT else set()
    )
