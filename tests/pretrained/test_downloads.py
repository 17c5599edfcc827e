"""What is downloaded of a model on the Hub: its settings, then what is read, and nothing beside."""

import fnmatch
import json
import shutil
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.pretrained.checkpoint import Checkpoint, Said
from eqxformer.pretrained.locate import locate
from tests.pretrained.tiny import MODEL, edit_settings

GOLDEN = Path(__file__).parent.parent / "golden"
COMMIT = "0123456789abcdef" * 2 + "01234567"
NAME = "someone/model"


class Hub:
    """A stand-in for huggingface_hub whose one repository is a directory.

    Arguments:
        repository: what the repository holds.
        snapshot: where what is downloaded goes.
    """

    def __init__(self, repository, snapshot):
        self.repository, self.snapshot = repository, snapshot
        self.asked, self.got, self.reached = [], [], True

    def snapshot_download(self, name, *, revision=None, allow_patterns=None):
        assert name == NAME
        self.asked.append(revision)
        self.snapshot.mkdir(parents=True, exist_ok=True)
        files = sorted(self.repository.rglob("*")) if self.reached else []
        for file in (each for each in files if each.is_file()):
            name = file.relative_to(self.repository).as_posix()
            if name in self.got or not any(fnmatch.fnmatchcase(name, p) for p in allow_patterns):
                continue
            self.got.append(name)
            (self.snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, self.snapshot / name)
        return str(self.snapshot)

    def add(self, *names):
        """Files of which not one is to be downloaded."""
        for name in names:
            (self.repository / name).parent.mkdir(parents=True, exist_ok=True)
            (self.repository / name).write_bytes(b"not one byte of it")


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch):
    """A Hub with the tiny checkpoint."""
    made = Hub(tiny, tmp_path / "cache" / "snapshots" / COMMIT)
    package = types.SimpleNamespace(snapshot_download=made.snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return made


DUPLICATES = (
    "consolidated.safetensors",
    "model.fp16.safetensors",
    "original/model.safetensors",
    "onnx/model.onnx",
    "pytorch_model.bin",
    "modeling_tiny.py",
)


def test_weights_are_downloaded_once_and_nothing_that_is_not_read(hub):
    hub.add(*DUPLICATES)
    (hub.repository / "vocab.txt").write_text("a\n")
    model = ef.from_pretrained(NAME)
    assert np.array_equal(model.norm.weight, MODEL.norm.weight)
    assert hub.got == ["config.json", "model.safetensors", "vocab.txt"]


def test_of_shards_those_that_the_index_names_are_downloaded(hub, tmp_path):
    shutil.rmtree(hub.repository)
    ef.save_pretrained(MODEL, hub.repository, shard_size=1500)
    shards = {each.name for each in hub.repository.glob("*.safetensors")}
    hub.add(
        *DUPLICATES, "model-00001-of-00099.safetensors", "original/model-00001-of-00002.safetensors"
    )
    model = ef.from_pretrained(NAME)
    assert np.array_equal(model.norm.weight, MODEL.norm.weight)
    assert {each for each in hub.got if "safetensors" in each} == {
        "model.safetensors.index.json",
        *shards,
    }


def test_a_single_file_goes_before_shards_that_are_there_too(hub):
    index = {"weight_map": {"a": "model-1-of-1.safetensors"}}
    (hub.repository / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.add("model-1-of-1.safetensors")
    ef.from_pretrained(NAME)
    assert "model-1-of-1.safetensors" not in hub.got


def test_an_index_that_names_other_files_is_refused_before_any_is_downloaded(hub):
    (hub.repository / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (hub.repository / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ef.CheckpointError, match="may name files of its own directory"):
        ef.from_pretrained(NAME)


def test_a_pattern_in_an_index_is_a_name_like_any_other(hub):
    (hub.repository / "model.safetensors").unlink()
    index = {"weight_map": {"a": "*.safetensors"}}
    (hub.repository / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.add("consolidated.safetensors")
    with pytest.raises(ef.CheckpointError, match="names shards that are not there"):
        ef.from_pretrained(NAME)
    assert "consolidated.safetensors" not in hub.got


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"bits": 4}}, "`quantization_config` must be None"),
        ({"model_type": "mamba"}, "`model_type` 'mamba' is not supported"),
        ({"architectures": ["LlamaForPoetry"]}, "must name one of LlamaForCausalLM"),
        ({"new_kind_of_scaling": 3}, "new_kind_of_scaling = 3"),
        ({"hidden_size": None}, "lacks `hidden_size`"),
    ],
)
def test_what_settings_alone_show_is_refused_before_weights_are_downloaded(hub, change, message):
    edit_settings(hub.repository, **change)
    with pytest.raises(ef.CheckpointError, match=message):
        ef.from_pretrained(NAME)
    assert hub.got == ["config.json"]


def test_modules_that_are_not_supported_are_refused_before_weights_are_downloaded(hub):
    kinds = [{"type": f"x.{kind}", "path": ""} for kind in ("Transformer", "Pooling", "Dense")]
    (hub.repository / "modules.json").write_text(json.dumps(kinds))
    with pytest.raises(ef.CheckpointError, match="the modules must be"):
        ef.from_pretrained(NAME)
    assert hub.got == ["config.json", "modules.json"]


def test_an_encoder_of_sentences_is_downloaded_with_its_poolings_settings(hub):
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    listed = [{"type": f"x.{kind}", "path": path} for kind, path in kinds]
    (hub.repository / "modules.json").write_text(json.dumps(listed))
    hub.add("2_Dense/model.safetensors")
    (hub.repository / "1_Pooling").mkdir()
    (hub.repository / "1_Pooling/config.json").write_text('{"pooling_mode": "lasttoken"}')
    edit_settings(hub.repository, architectures=["LlamaForPoetry"])  # it is the states that count
    folder = locate(NAME)
    assert Said(folder).tree(None).pooling == ef.Pooling.Config("last")
    assert {"1_Pooling/config.json", "model.safetensors"} <= set(hub.got)
    assert "2_Dense/model.safetensors" not in hub.got


def test_later_steps_are_of_the_commit_that_the_first_was_of(hub):
    ef.from_pretrained(NAME, revision="main")
    assert hub.asked == ["main", COMMIT]


def test_a_repository_of_pickles_alone_says_so(hub):
    (hub.repository / "model.safetensors").unlink()
    hub.add("pytorch_model.bin", "model.fp16.safetensors")
    with pytest.raises(ef.CheckpointError) as caught:
        ef.from_pretrained(NAME)
    message = str(caught.value)
    assert message.startswith(f"`{NAME}` has no model.safetensors, nor")
    for part in ("pickles alone, which are never", "AutoModelForCausalLM", "refs/pr/N"):
        assert part in message
    assert hub.got == ["config.json"]


def test_settings_alone_in_the_cache_of_a_hub_that_is_not_reached_are_not_all_that_it_has(hub):
    locate(NAME, patterns=("*.json",))
    hub.reached = False
    with pytest.raises(ef.CheckpointError) as caught:
        ef.from_pretrained(NAME)
    message = str(caught.value)
    for part in (str(hub.snapshot), "could not be reached", "ask again once it can be reached"):
        assert part in message
    assert "on the Hub" not in message


def test_a_repository_without_settings_is_refused_without_its_weights(hub):
    (hub.repository / "config.json").unlink()
    with pytest.raises(ef.CheckpointError, match=r"There is no config\.json"):
        ef.from_pretrained(NAME)
    assert hub.got == []


def test_adapters_are_downloaded_without_those_of_other_steps(hub):
    adapted = ef.add_lora(MODEL, ef.LoRA(), to="**.query", key=jax.random.key(0))
    shutil.rmtree(hub.repository)
    ef.save_adapters(adapted, hub.repository)
    hub.add("checkpoint-500/adapter_model.safetensors", "adapter_model.bin", "optimizer.pt")
    assert isinstance(ef.load_adapters(MODEL, NAME), ef.DecoderLM)
    assert hub.got == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.fixture
def both(hub, tmp_path):
    """A Hub whose repository has adapters beside a whole model."""
    adapted = ef.add_lora(MODEL, ef.LoRA(), to="**.query", key=jax.random.key(0))
    ef.save_adapters(adapted, tmp_path / "adapters")
    shutil.copytree(tmp_path / "adapters", hub.repository, dirs_exist_ok=True)
    return hub


@pytest.mark.parametrize("model_type", ["llama", "mamba"])
def test_adapters_are_downloaded_without_the_model_beside_them(both, model_type):
    edit_settings(both.repository, model_type=model_type)
    assert isinstance(ef.load_adapters(MODEL, NAME), ef.DecoderLM)
    assert both.got == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_model_is_downloaded_without_the_adapters_beside_it(both):
    assert np.array_equal(ef.from_pretrained(NAME).norm.weight, MODEL.norm.weight)
    assert both.got == ["adapter_config.json", "config.json", "model.safetensors"]


def test_settings_beside_adapters_are_checked_before_weights_are_downloaded(both):
    edit_settings(both.repository, model_type="mamba")
    with pytest.raises(ef.CheckpointError, match="`model_type` 'mamba' is not supported"):
        ef.from_pretrained(NAME)
    assert both.got == ["adapter_config.json", "config.json"]


def test_adapters_in_place_of_a_model_are_pointed_at(both):
    (both.repository / "model.safetensors").unlink()
    with pytest.raises(ef.CheckpointError, match="has adapters, which `load_adapters` puts into"):
        ef.from_pretrained(NAME)


def test_a_model_in_our_own_format_is_downloaded(hub):
    shutil.rmtree(hub.repository)
    ef.save(MODEL, hub.repository)
    assert np.array_equal(ef.load(locate(NAME)).norm.weight, MODEL.norm.weight)


# Their settings call the head tied, as version 5 does of every T5; the file has one of its own.
OWN_HEAD = ("mt5", "t5-gated")


@pytest.mark.parametrize("folder", sorted(GOLDEN.iterdir()), ids=lambda folder: folder.name)
def test_settings_alone_describe_what_they_describe_beside_tensors(folder):
    alone, beside = Said(folder).tree(None), Checkpoint(folder).config.edit(origin=None)
    if folder.name in OWN_HEAD:
        assert isinstance(alone.decoder.head, ef.TiedHead.Config)
        alone = alone.edit("decoder", head=beside.decoder.head)
    assert alone == beside
