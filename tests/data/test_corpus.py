import os
import subprocess
import sys
from pathlib import Path

import pytest

from eqxformer.data.corpus import Corpus, default_corpus, read_corpus, read_text


def test_the_default_corpus_is_a_long_english_text():
    corpus = read_corpus(None)
    assert len(corpus.text) > 300_000
    assert "The " in corpus.text


def test_the_default_corpus_has_each_paragraph_once():
    paragraphs = default_corpus().text.strip().split("\n\n")
    assert len(paragraphs) == len(set(paragraphs))


def test_the_default_corpus_is_the_same_in_every_process():
    code = "from eqxformer.data.corpus import default_corpus as d; print(d().fingerprint())"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "EQXFORMER_CHECKS": "0"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert seen == {default_corpus().fingerprint() + "\n"}


def test_the_last_tenth_is_for_validation():
    training, validation = Corpus("digits", "0123456789" * 10).split()
    assert len(training) == 90
    assert training + validation == "0123456789" * 10


def test_a_file_is_read_as_utf8_with_newlines(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9\r\nau lait\n")
    assert read_text(path) == "café\nau lait\n"
    assert read_corpus(path).name == "text.txt"


def test_the_working_directory_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("some text")
    monkeypatch.chdir(tmp_path)
    assert read_corpus(Path(".")).name == tmp_path.name


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no text"),
        (b"aaaa", "holds only 'a'"),
        (b"caf\xe9 au lait", "byte 0xe9 at position 3"),
        (b"PK\x00\x01", "binary file"),
        (b"\xff\xfeh\x00i\x00", "not UTF-8"),
    ],
)
def test_what_is_no_text_to_learn_from_is_refused(tmp_path, data, message):
    path = tmp_path / "data"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_corpus(path)


def test_missing_files_and_directories_are_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no file"):
        read_corpus(tmp_path / "missing")
    with pytest.raises(ValueError, match="is a directory without .txt files"):
        read_corpus(tmp_path)
    with pytest.raises(ValueError, match="is a directory; name a text file"):
        read_text(tmp_path)


def test_a_directory_and_lines_of_json_are_one_text(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("second\n")
    (tmp_path / "a.txt").write_text("first\n\n")
    (tmp_path / "deep" / "c.txt").write_text("third")
    corpus = read_corpus(tmp_path)
    assert corpus.text == "first\n\nsecond\n\nthird\n"
    assert corpus.name == tmp_path.name
    lines = tmp_path / "some.jsonl"
    lines.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read_corpus(lines).text == "one\n\ntwo\n"
    lines.write_text('{"text": [1, 2]}\n')
    with pytest.raises(ValueError, match="holds token ids for `text`"):
        read_corpus(lines)


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    def forbid(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", forbid)
    with pytest.raises(ValueError, match="cannot be read: Permission denied"):
        read_text(tmp_path / "secret")
