import json

import pytest

from eqxformer.data.characters import Characters
from eqxformer.models import families
from eqxformer.training.run_directory import RunDirectory, refuse_existing, write_text
from tests.helpers.compare import same_bits
from tests.helpers.models import filled

TOKENIZER = Characters.of("abc")


def model(seed=0):
    config = families.gpt(vocab=3, dim=4, layers=1, heads=2, context=8)
    return filled(config, seed)


def test_what_was_put_in_comes_out_again(tmp_path):
    path = tmp_path / "deep" / "run"
    made = RunDirectory.create(path, about={"recipe": "text"}, tokenizer=TOKENIZER)
    made.save(model())
    opened = RunDirectory.open(path)
    assert opened.about() == {"recipe": "text"}
    assert opened.tokenizer() == TOKENIZER
    assert same_bits(opened.load(), model())


def test_the_last_model_saved_is_the_one_loaded_and_nothing_else_is_left(tmp_path):
    run = RunDirectory.create(tmp_path / "run", about={}, tokenizer=TOKENIZER)
    for seed in range(3):
        run.save(model(seed))
    assert same_bits(run.load(), model(2))
    names = {path.name for path in run.path.iterdir()}
    assert names == {"run.json", "tokenizer.json", "config.json", "model.safetensors"}


@pytest.mark.parametrize("kind", ["empty", "full", "file", "broken link"])
def test_what_exists_is_refused_and_not_touched(tmp_path, kind):
    path = tmp_path / "run"
    if kind == "file":
        path.write_text("mine")
    elif kind == "broken link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
        if kind == "full":
            (path / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="exists already"):
        RunDirectory.create(path, about={}, tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match="exists already"):
        refuse_existing(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_below_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="cannot be made"):
        RunDirectory.create(tmp_path / "file" / "run", about={}, tokenizer=TOKENIZER)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no run\.json"):
        RunDirectory.open(tmp_path)
    with pytest.raises(ValueError, match="is not a directory"):
        RunDirectory.open(tmp_path / "missing")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", "must hold a JSON object"), (None, "is missing")],
)
def test_torn_files_are_named(tmp_path, text, message):
    run = RunDirectory.create(tmp_path / "run", about={}, tokenizer=TOKENIZER)
    (run.path / "tokenizer.json").unlink()
    if text is not None:
        (run.path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=rf"tokenizer\.json` {message}"):
        run.tokenizer()


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_text(path, json.dumps("old"))

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, json.dumps("new"))
    assert json.loads(path.read_text()) == "old"
