"""Presets: known sizes, every setting accounted for, saved in the words of their checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.pretrained import presets
from eqxformer.pretrained.presets import described, preset_of
from tests.helpers.compare import same_bits
from tests.helpers.models import filled, logits

ROOT = Path(__file__).parent.parent.parent
FOLDER = Path(presets.__file__).parent
NAMES = ef.preset_names()
# Their logits have a bias that is stored, but counted nowhere, since nothing ever trains it.
UNTRAINED_BIAS = {"marian", "mbart", "pegasus"}


def published(name):
    """The published count as our model has it: without an unused pooler, with a stored bias."""
    found = preset_of(name)
    dim = found.settings.get("hidden_size", 0)
    pooler = dim * dim + dim if found.pooling is not None else 0
    bias = found.settings["vocab_size"] if found.settings["model_type"] in UNTRAINED_BIAS else 0
    return found.parameters - pooler + bias


@pytest.fixture(scope="module")
def built():
    """What `tests/pretrained/built.py` says of every preset, by name."""
    command = [sys.executable, "-m", "tests.pretrained.built"]
    quick = {**os.environ, "EQXFORMER_CHECKS": "0"}
    done = subprocess.run(command, cwd=ROOT, env=quick, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_has_the_published_number_of_parameters(built, name):
    assert built[name].get("parameters", built[name]) == published(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_saved_in_the_words_of_its_checkpoint(built, name):
    written, known = built[name].get("settings", built[name]), preset_of(name).settings
    # A bare encoder-decoder is saved with its head, which is the token table.
    assert {**written, "architectures": []} == {**known, "architectures": []}


def test_files_are_named_after_the_architecture_of_their_presets_and_name_nothing_twice():
    found = []
    for file in FOLDER.glob("*.json"):
        entries = json.loads(file.read_text())
        found += entries
        for name in entries:
            kind = preset_of(name).settings["model_type"]
            assert kind.replace("-", "_") == file.stem
            (class_name,) = preset_of(name).settings["architectures"]
            assert class_name in ef.architecture(kind).tasks
    assert sorted(found) == NAMES


def test_names_are_those_of_the_hub_in_lower_case_without_the_organisation():
    for name in NAMES:
        assert name == name.lower()
        assert "/" not in name


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("qwen3-0.6", "`qwen3-0.6b`"),
        ("Qwen/Qwen3-0.6B", "`qwen3-0.6b`"),
        ("gtp2", "`gpt2`"),
        ("google/flan-t5-smal", "`flan-t5-small`"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest(name, nearest):
    with pytest.raises(ef.CheckpointError, match=f"no preset `{name}`.*{nearest}"):
        ef.preset(name)


def test_a_name_like_no_other_is_an_error_that_says_how_to_see_all():
    with pytest.raises(ValueError, match=r"no preset `xyzzy`\. `preset_names\(\)` lists all"):
        ef.preset("xyzzy")


def test_no_key_of_a_presets_settings_is_ignored():
    for name in ("gpt2", "bert-base-uncased", "t5-small"):
        values = {**preset_of(name).settings, "hidden_sise": 1}
        with pytest.raises(ef.CheckpointError, match="hidden_sise = 1"):
            described(values, name)


def test_a_preset_says_what_is_pooled_of_a_sentence():
    first, mean = ef.preset("bge-small-en-v1.5").pooling, ef.preset("all-minilm-l6-v2").pooling
    assert (first.take, first.unit_length) == ("first", True)
    assert (mean.take, mean.unit_length) == ("mean", True)


def test_what_a_preset_printed_is_does_not_show_where_it_is_from():
    assert "origin" not in str(ef.preset("gpt2"))


def tiny_gpt2():
    config = ef.preset("gpt2")
    config = config.edit(vocab=19, dim=8, blocks=config.blocks[:2])
    config = config.edit("blocks.*.attention", heads=2).edit("blocks.*.feed_forward", hidden=32)
    return config.edit("embedding.positions", length=9)


def tiny_qwen3():
    config = ef.preset("qwen3-0.6b")
    config = config.edit(vocab=19, dim=8, blocks=config.blocks[:2])
    config = config.edit("blocks.*.attention", heads=2, kv_heads=1, head_dim=6)
    return config.edit("blocks.*.feed_forward", hidden=14)


def tiny_minilm():
    config = ef.preset("all-minilm-l6-v2")
    config = config.edit(vocab=19, dim=8, blocks=config.blocks[:2])
    config = config.edit("blocks.*.attention", heads=2).edit("blocks.*.feed_forward", hidden=14)
    return config.edit("embedding.positions", length=9)


@pytest.mark.parametrize(
    ("make", "sizes", "kept"),
    [
        (tiny_gpt2, {"n_embd": 8, "n_head": 2}, {"eos_token_id": 50256, "summary_use_proj": True}),
        (tiny_qwen3, {"num_key_value_heads": 1, "head_dim": 6}, {"eos_token_id": 151645}),
        (tiny_minilm, {"num_hidden_layers": 2}, {"pad_token_id": 0, "layer_norm_eps": 1e-12}),
    ],
)
def test_a_preset_with_other_sizes_is_saved_and_loaded(make, sizes, kept, tmp_path):
    model = filled(make())
    ef.save_pretrained(model, tmp_path / "tiny")
    written = json.loads((tmp_path / "tiny/config.json").read_text())
    assert {**sizes, **kept}.items() <= written.items()
    loaded = ef.from_pretrained(tmp_path / "tiny")
    tokens = jax.numpy.array([[3, 1, 4, 1, 5]])
    assert np.array_equal(logits(loaded, tokens), logits(model, tokens))
    if isinstance(model, ef.Encoder):
        assert np.array_equal(loaded.embed(tokens), model.embed(tokens))


def test_a_model_of_a_preset_has_the_weights_of_its_key():
    config = tiny_gpt2()
    one, again, other = (config.build(key=jax.random.key(seed)) for seed in (1, 1, 2))
    assert same_bits(one, again)
    assert not same_bits(one, other)
