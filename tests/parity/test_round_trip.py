"""Checkpoints that transformers wrote, loaded and saved by us, and loaded by transformers again."""

import functools
import json
import shutil

import pytest
import torch

import eqxformer as ef
from eqxformer.checkpoints.rebuild import expected
from eqxformer.pretrained import Checkpoint
from eqxformer.pretrained.express import expression
from tests.helpers.old_words import in_old_words
from tests.parity.cases import CASES, grouped
from tests.parity.live import inputs_of, make_batch, outputs_of, store


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The hot reference of a case and the directory of its checkpoint, made once."""

    @functools.cache
    def find(name):
        folder = tmp_path_factory.mktemp("stored") / name
        model = CASES[name].reference("hot")
        store(model, folder)
        return model, folder

    return find


def assert_same_to_transformers(case, model, directory):
    """What transformers loads from a directory has the tensors and the results of `model`."""
    loaded, report = type(model).from_pretrained(
        directory, output_loading_info=True, attn_implementation=case.attention
    )
    assert not any(report.values()), report
    loaded.config.pad_token_id = model.config.pad_token_id  # which no computation of ours needs
    theirs, again = model.state_dict(), loaded.state_dict()
    assert theirs.keys() == again.keys()
    assert all(torch.equal(theirs[key], again[key]) for key in theirs)
    inputs = inputs_of(model, make_batch())
    inputs = {key: torch.from_numpy(array) for key, array in inputs.items()}
    with torch.no_grad():
        pairs = [outputs_of(case, each, inputs) for each in (model, loaded.eval())]
    for key, output in pairs[0].items():
        assert torch.equal(output, pairs[1][key]), key


@pytest.mark.parametrize("name", grouped(CASES))
def test_transformers_loads_what_we_save_with_equal_results(name, stored, tmp_path):
    model, source = stored(name)
    ef.save_pretrained(ef.from_pretrained(source), tmp_path / "ours")
    assert_same_to_transformers(CASES[name], model, tmp_path / "ours")


@pytest.mark.parametrize("name", grouped(CASES))
def test_saving_what_was_saved_gives_the_same_bytes(name, stored, tmp_path):
    _, source = stored(name)
    first, second = tmp_path / "first", tmp_path / "second"
    ef.save_pretrained(ef.from_pretrained(source), first)
    ef.save_pretrained(ef.from_pretrained(first), second)
    files = sorted(f.name for f in first.iterdir())
    assert files == sorted(f.name for f in second.iterdir())
    assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files)
    assert json.loads((first / "config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )


@pytest.mark.parametrize("name", grouped(CASES))
def test_the_words_of_version_4_describe_the_same_model(name, stored, tmp_path):
    _, source = stored(name)
    values = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(in_old_words(values)))
    shutil.copyfile(source / "model.safetensors", tmp_path / "model.safetensors")
    old, new = Checkpoint(tmp_path).config, Checkpoint(source).config
    assert old.edit(origin=None) == new.edit(origin=None)


@pytest.mark.parametrize("name", grouped(CASES))
def test_a_model_without_a_history_is_described_anew(name, stored, tmp_path):
    model, source = stored(name)
    loaded = ef.from_pretrained(source)
    config = loaded.config.edit(origin=None)
    kind = loaded.config.origin and json.loads(loaded.config.origin.settings)["model_type"]
    if ef.architecture(kind).describe is None:
        with pytest.raises(ef.CheckpointError, match="only as it was loaded"):
            expression(config, expected(loaded), kind)
        return
    class_name, ending = type(model).__name__, "ForQuestionAnswering"
    tokens = class_name.replace(ending, "ForTokenClassification")
    if class_name.endswith(ending) and isinstance(loaded, ef.EncoderWithHead):
        # Without its history it is what it is: two labels for every token.
        found = expression(config, expected(loaded), kind).class_name
        assert found == (tokens if tokens in ef.architecture(kind).tasks else class_name)
        return
    ef.save_pretrained(ef.rebuild(loaded, config), tmp_path / "ours", model_type=kind)
    assert_same_to_transformers(CASES[name], model, tmp_path / "ours")
