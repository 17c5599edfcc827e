"""Ids of the Hub and tokenizers, without a network."""

import contextlib
import fnmatch
import re
import sys
import types

import pytest

import eqxformer as ef
from eqxformer.pretrained.locate import locate
from tests.pretrained.tiny import edit_settings


class HfHubHTTPError(Exception):
    """As in huggingface_hub."""


@pytest.fixture
def hub(monkeypatch, tiny):
    """A stand-in for huggingface_hub that has one checkpoint; notes what it was asked."""
    asked = []

    def snapshot_download(name, *, revision=None, allow_patterns=None):
        asked.append((name, revision, allow_patterns))
        if name != "someone/tiny":
            raise HfHubHTTPError("404: there is no such repository\nand a long explanation")
        return str(tiny)

    errors = types.ModuleType("huggingface_hub.errors")
    for name in ("HFValidationError", "LocalEntryNotFoundError"):
        setattr(errors, name, type(name, (Exception,), {}))
    errors.HfHubHTTPError = HfHubHTTPError
    package = types.ModuleType("huggingface_hub")
    package.snapshot_download, package.errors = snapshot_download, errors
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return asked


def test_an_id_is_downloaded_at_the_revision_asked_for(hub, tiny, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert locate("someone/tiny", revision="v2") == tiny
    assert {(name, revision) for name, revision, _ in hub} == {("someone/tiny", "v2")}
    patterns = [each for _, _, patterns in hub for each in patterns]
    assert any(fnmatch.fnmatch("model.safetensors", each) for each in patterns)
    for name in ("pytorch_model.bin", "consolidated.pt", "modeling_tiny.py", "a/model.safetensors"):
        assert not any(fnmatch.fnmatch(name, each) for each in patterns)


def test_a_model_comes_from_the_hub(hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert isinstance(ef.from_pretrained("someone/tiny"), ef.DecoderLM)


def test_a_tokenizer_and_a_template_are_downloaded_without_the_weights(hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for read in (ef.load_tokenizer, ef.ChatTemplate.read):
        with contextlib.suppress(FileNotFoundError):
            read("someone/tiny")
    for _, _, patterns in hub:
        assert not any(fnmatch.fnmatch("model.safetensors", each) for each in patterns)
        assert any(fnmatch.fnmatch("tokenizer_config.json", each) for each in patterns)
    assert len(hub) == 2
    assert any(fnmatch.fnmatch("vocab.txt", each) for each in hub[0][2])


def test_a_directory_goes_before_an_id_of_the_same_name(hub, tiny, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    assert locate("tiny").resolve() == tiny.resolve()
    assert hub == []


def test_an_id_that_the_hub_does_not_have_is_one_line(hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ef.CheckpointError, match="404: there is no such repository") as caught:
        ef.from_pretrained("someone/else")
    assert "long explanation" not in str(caught.value)


def test_a_network_that_fails_is_one_line(hub, monkeypatch, tmp_path):
    class ProxyError(Exception):
        """As httpx's, which is no `OSError`."""

    def unreachable(name, **_):
        raise ProxyError("503 Service Unavailable")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["huggingface_hub"], "snapshot_download", unreachable)
    with pytest.raises(ef.CheckpointError, match="did not give `someone/else`: 503 Service"):
        ef.from_pretrained("someone/else")


@pytest.mark.parametrize("name", ["../up", "/absolute/nothing", "a/b/c", "", "has space"])
def test_what_can_be_no_id_is_never_asked_for(hub, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path / "tiny")
    with pytest.raises(ef.CheckpointError):
        ef.from_pretrained(name or "nothing here")
    assert hub == []


def test_a_tokenizer_is_used_as_it_stands(tiny):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"a": 0, "b": 1, "?": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tiny / "tokenizer.json"))
    assert ef.load_tokenizer(tiny).encode("b a c").ids == [1, 0, 2]


def test_a_tokenizer_of_sentencepiece_alone_says_how_it_is_converted(tiny):
    with pytest.raises(ef.CheckpointError, match="is not in this directory"):
        ef.load_tokenizer(tiny)
    (tiny / "spiece.model").write_bytes(b"")
    with pytest.raises(ef.CheckpointError, match=r"spiece\.model.*sentencepiece.*save_pretrained"):
        ef.load_tokenizer(tiny)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["vocab.txt"], "It has vocab.txt. transformers converts it"),
        (["vocab.json", "merges.txt"], "It has vocab.json and merges.txt. transformers converts"),
        (["vocab.json"], "Its tokenizer is not in this directory."),
    ],
)
def test_a_tokenizer_in_other_files_says_how_it_is_converted(tiny, files, said):
    for name in files:
        (tiny / name).write_text("{}")
    with pytest.raises(ef.CheckpointError, match=re.escape(said)):
        ef.load_tokenizer(tiny)


@pytest.mark.parametrize(
    ("files", "settings", "name"),
    [
        (["source.spm", "vocab.json"], {}, "MarianTokenizer"),
        (["sentencepiece.bpe.model", "vocab.json"], {"model_type": "m2m_100"}, "M2M100Tokenizer"),
        ([], {"tokenizer_class": "ByT5Tokenizer"}, "ByT5Tokenizer"),
        (["vocab.txt"], {"tokenizer_class": "BertJapaneseTokenizer"}, "BertJapaneseTokenizer"),
    ],
)
def test_a_tokenizer_that_is_never_written_as_json_says_so(tiny, files, settings, name):
    edit_settings(tiny, **settings)
    for each in files:
        (tiny / each).write_text("{}")
    with pytest.raises(ef.CheckpointError, match=f"has its {name} in Python alone") as caught:
        ef.load_tokenizer(tiny)
    assert "save_pretrained" not in str(caught.value)


def test_the_class_that_settings_name_goes_before_that_of_the_model(tiny):
    """NLLB is an M2M-100 whose tokenizer is written as JSON."""
    edit_settings(tiny, model_type="m2m_100", tokenizer_class="NllbTokenizer")
    (tiny / "sentencepiece.bpe.model").write_bytes(b"")
    with pytest.raises(ef.CheckpointError, match="transformers converts it"):
        ef.load_tokenizer(tiny)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"type": "Characters"}', "Characters needs `alphabet`"),
        ('{"type": "Characters", "alphabet": 5}', "`Characters.alphabet` must be str; got 5"),
        ('{"type": "Characters", "alphabet": "ba"}', "distinct characters in the order"),
        ('{"type": "Characters", "alphabet": "\\ud800"}', "surrogates not allowed"),
        ('{"type": "os.system"}', "`os.system` is not a known type of config"),
        ('{"type": "SGD", "learning_rate": 1.0}', "is of type 'SGD', which the package tokenizers"),
        ('["type"]', "invalid type: sequence"),
    ],
)
def test_a_broken_tokenizer_of_our_own_is_told_in_our_own_words(tiny, text, says):
    (tiny / "tokenizer.json").write_text(text)
    with pytest.raises(ef.CheckpointError, match=re.escape(says)):
        ef.load_tokenizer(tiny)


def test_a_broken_tokenizer_and_a_missing_package_are_named(tiny, monkeypatch):
    (tiny / "tokenizer.json").write_text("{}")
    with pytest.raises(ef.CheckpointError, match=r"tokenizer\.json is no tokenizer"):
        ef.load_tokenizer(tiny)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"eqxformer\[hub\]"):
        ef.load_tokenizer(tiny)
