"""Every class that an encoder can be used as is read whole from what transformers writes."""

import pytest
import transformers as hf

import eqxformer as ef
from eqxformer.pretrained import Checkpoint
from tests.parity.encoders import ALBERT, BERT, DISTILBERT, ELECTRA, MODERNBERT, ROBERTA
from tests.parity.live import store

SETTINGS = {
    "albert": ALBERT,
    "bert": BERT,
    "camembert": ROBERTA,
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "modernbert": MODERNBERT,
    "mpnet": ROBERTA,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
}
# The second head of those classes: whether two texts, or in this order, follow on each other.
LEFT = {
    "AlbertForPreTraining": "sop_classifier.classifier",
    "BertForPreTraining": "cls.seq_relationship",
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in SETTINGS for name in ef.architecture(kind).tasks]
)
def test_every_tensor_of_every_class_is_read(kind, name, tmp_path):
    cls = getattr(hf, name)
    store(cls(cls.config_class(**SETTINGS[kind])), tmp_path)
    checkpoint = Checkpoint(tmp_path)
    assert (checkpoint.architecture.model_type, checkpoint.class_name) == (kind, name)
    read = {checkpoint.stored.find(name) for b in checkpoint.bindings for name in b.theirs}
    left = set(checkpoint.files.names) - read
    assert left == (
        {f"{LEFT[name]}.{end}" for end in ("weight", "bias")} if name in LEFT else set()
    )
