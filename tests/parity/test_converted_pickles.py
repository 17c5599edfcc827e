"""What becomes of a pickle that is converted in transformers, with its head and without."""

import numpy as np
import pytest
import torch
import transformers as hf

import eqxformer as ef
from tests.helpers.models import logits
from tests.parity.cases import CASES

TOLERANCE = 1e-4  # of logits of about 10, in float32


def pickled(case, folder):
    """The reference, and a directory with its weights as a pickle alone."""
    model = case.reference("hot")
    model.config.save_pretrained(folder)
    tensors = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    return model


@pytest.mark.parametrize(("name", "bare"), [("t5-gated", "T5Model"), ("mt5", "MT5Model")])
def test_the_class_that_the_error_names_keeps_the_head_and_automodel_loses_it(name, bare, tmp_path):
    model = pickled(CASES[name], tmp_path)
    with pytest.raises(ef.CheckpointError, match="AutoModelForSeq2SeqLM"):
        ef.from_pretrained(tmp_path)
    hf.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).save_pretrained(tmp_path / "whole")
    hf.AutoModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "bare")
    source, target = np.array([[3, 4, 5]]), np.array([[0, 7]])
    inputs = {"input_ids": torch.from_numpy(source), "decoder_input_ids": torch.from_numpy(target)}
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()
    ours = logits(ef.from_pretrained(tmp_path / "whole"), source, target)
    assert np.abs(ours - expected).max() < TOLERANCE
    with pytest.raises(ef.CheckpointError, match=f"names {bare}, which has no head"):
        ef.from_pretrained(tmp_path / "bare")
