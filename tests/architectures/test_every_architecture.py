"""What holds of every architecture: it is proven, on the page, and saved as it was."""

import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import eqxformer as ef
from eqxformer.pretrained import Checkpoint
from tests.helpers.old_words import in_old_words
from tests.helpers.writers import WRITERS

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
NAMES = sorted(folder.name for folder in GOLDEN.iterdir())
PAGE = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
FOLDER = ROOT / "eqxformer" / "architectures"


def settings(name):
    """The `config.json` of a golden checkpoint."""
    return json.loads((GOLDEN / name / "config.json").read_text())


@functools.cache
def golden(name):
    """The model of a golden checkpoint."""
    return ef.from_pretrained(GOLDEN / name)


def test_every_architecture_has_a_golden_checkpoint():
    assert {settings(name)["model_type"] for name in NAMES} == set(ef.model_types())


def test_the_page_has_a_row_for_every_architecture_with_all_its_classes():
    rows = dict(re.findall(r"^\| `([\w-]+)` \|(.*)\|$", PAGE, flags=re.MULTILINE))
    del rows["model_type"]  # the head of the table
    assert list(rows) == ef.model_types()
    for kind, row in rows.items():
        classes = re.findall(r"`(\w+)`", row.rpartition("|")[2] or row)
        assert set(ef.architecture(kind).tasks) <= set(classes), kind


def test_the_errors_on_the_page_are_within_what_the_tests_allow():
    numbers = re.findall(r"\| ([\d.]+) \| ([\d.]+) \|", PAGE)
    assert len(numbers) == len(ef.model_types())
    assert all(float(number) < 30 for pair in numbers for number in pair)


def test_every_architecture_is_one_short_file_that_begins_with_what_it_is():
    for file in FOLDER.glob("[a-z]*.py"):
        first, *rest = file.read_text(encoding="utf-8").splitlines()
        assert re.match(r'"""m?[A-Z].*[.:]', first), file.name
        assert len(rest) < 200, file.name


@pytest.mark.parametrize("name", NAMES)
def test_saving_a_golden_checkpoint_gives_back_its_tensors_and_its_words(name, tmp_path):
    ef.save_pretrained(golden(name), tmp_path / "ours")
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    theirs = load_file(GOLDEN / name / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        assert np.array_equal(array.view(np.uint8), ours[key].view(np.uint8)), key
    kept = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert kept == settings(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_writes_text_is_among_those_that_are_tried_at_it(name):
    writes = isinstance(golden(name).config, ef.DecoderLM.Config | ef.EncoderDecoder.Config)
    assert (name in WRITERS) == writes


@pytest.mark.parametrize("name", NAMES)
def test_the_words_of_version_4_describe_the_same_model(name, tmp_path):
    shutil.copyfile(GOLDEN / name / "model.safetensors", tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(in_old_words(settings(name))))
    assert Checkpoint(tmp_path).config.edit(origin=None) == golden(name).config.edit(origin=None)


@pytest.mark.parametrize("name", NAMES)
def test_a_key_that_is_not_known_is_refused(name, tmp_path):
    shutil.copyfile(GOLDEN / name / "model.safetensors", tmp_path / "model.safetensors")
    values = {**settings(name), "use_quantum_attention": True}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ef.CheckpointError, match="use_quantum_attention = True"):
        Checkpoint(tmp_path)
