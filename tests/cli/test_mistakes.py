"""Whatever is asked for in vain: one line that says what to do, exit code 2, nothing touched."""

import sys
from pathlib import Path

import pytest

from eqxformer.checkpoints.native import save
from eqxformer.cli.commands import run


def refused(command, here, *arguments):
    """The one line that a command is refused with."""
    before = sorted((path, path.stat().st_mtime_ns) for path in here.parent.rglob("*"))
    code, out, err = command(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("Error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert sorted((path, path.stat().st_mtime_ns) for path in here.parent.rglob("*")) == before
    return err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text"),
        (b"a", "holds only 'a'"),
        (b"aaaaaaaa" * 1000, "holds only 'a'"),
        (b"ab" * 20, "need more than the 64 of a window. Give a longer text"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is not UTF-8 text: byte 0x89 at position 0"),
        (b"text\0text" * 1000, "is a binary file"),
        ("café".encode("latin-1") * 1000, "is not UTF-8 text"),
    ],
)
def test_files_that_hold_nothing_to_learn(command, here, content, message):
    path = here / "data"
    path.write_bytes(content)
    assert message in refused(command, here, "train", "--data", path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "missing.txt"], "There is no file `missing.txt`"),
        (["--data", "."], "`.` is a directory without .txt files"),
        (["rot12"], "no recipe `rot12`; the recipes are text, rot13, vpj, nanogpt"),
        (["rot13", "--data", "../text.txt"], "reads no file; leave --data away"),
        (["translate"], "`translate` needs parallel text: --data DIRECTORY with train.en and"),
        (["translate", "--data", "missing"], "There is no `missing`; name a directory of parallel"),
        (["translate", "--data", "."], "must have train.en and train.de, or train.tsv or"),
        (["translate", "--data", "../text.txt"], "must end in .tsv or .jsonl, or be a directory"),
        (["text", "rot13"], "unexpected extra argument (rot13)"),
        (["--steps", "-5"], "`steps` must be at least 1; got -5"),
        (["--steps", "0"], "`steps` must be at least 1; got 0"),
        (["--steps", "many"], "'many' is not a valid integer; see eqxformer train --help"),
        (["--batch", "0"], "`batch` must be at least 1; got 0"),
        (["--batch", "1000000000"], "Make the model or the batch smaller"),
        (["--seed", "-1"], "`seed` must be at least 0 and below 2**63; got -1"),
        (["--seed", str(2**63)], "`seed` must be at least 0 and below 2**63; got 9223372"),
        (["--hurry"], "No such option"),
        (["--set", "model.dim"], "--set needs path=value"),
        (["--set", "=3"], "--set needs path=value"),
        (["--set", "model.width=3"], "DecoderLM has no field `width`"),
        (["--set", "modell.dim=3"], "`modell` matches nothing"),
        (["--set", 'data={"type": "RandomWords"}'], "`TextExperiment.data` must be Windows"),
        (["--set", "sample_every=0"], "`sample_every` must be at least 1; got 0"),
        (["--set", "steps=soon"], "`TextExperiment.steps` must be int; got 'soon'"),
        (["--set", "model.dim=100000000"], "Make the model or the batch smaller"),
        (["--set", "model.dim=0"], "`dim` must be positive; got 0"),
        (["--set", "model.dim=-8"], "`dim` must be positive; got -8"),
        (["--set", "model.blocks.*.attention.heads=3"], "`heads` must divide the model's width"),
        (["--set", "model.blocks=[]", "--set", "model.vocab=9"], "`model.vocab` must be the"),
        (["--set", "data.length=100000"], "need more than the 100000 of a window"),
        (["--set", "optimizer.betas=[0.9, 1.5]"], "`betas` must be at least 0 and below 1"),
        (["--set", "optimizer.learning_rate.peak=-1"], "`peak` must not be negative"),
        (["--set", "prompt=žluťoučký"], "outside the alphabet"),
        (["--set", "peak_flops=0"], "`peak_flops` must be above 0; got 0"),
        (
            ["rot13", "--set", "peak_flops=1e12"],
            "`peak_flops` changes nothing here: operations are",
        ),
        (
            ["--set", "model.blocks.*.attention.window=4", "--set", "peak_flops=1e12"],
            "`peak_flops` changes nothing here: operations are counted of a DecoderLM without wind",
        ),
        (["--set", "checkpoint=runs/a"], "`checkpoint` is what --from names; give it there"),
        (
            ["--set", 'trains={"type": "Only", "paths": ["blocks.*.attn"]}'],
            "`blocks.*.attn` leads to no array of the model",
        ),
        (["--set", 'optimizer={"type": "Adagrad"}'], "`Adagrad` is not a known type of config"),
    ],
)
def test_impossible_training(command, here, arguments, message):
    assert message in refused(command, here, "train", *arguments)


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_run_directory_that_exists(command, here, kind):
    path = here / "mine"
    path.mkdir() if kind == "directory" else path.write_text("mine")
    line = refused(command, here, "train", "--out", path)
    assert "exists already; name a directory that does not, with --out" in line


def test_a_run_directory_that_cannot_be_made(here, capsys):
    (here / "file").write_text("mine")
    assert run(["train", "rot13", "--out", str(here / "file" / "run")]) == 2
    assert "cannot be made" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["file"]


def test_a_package_that_is_not_installed_is_named(command, here, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    learned = ["--set", 'tokenizer={"type": "ByteLevelBPE", "vocab": 300}']
    line = refused(command, here, "train", "--data", "../text.txt", *learned)
    assert "need tokenizers: pip install 'eqxformer[hub]'" in line


def test_what_is_needed_at_the_end_is_asked_for_at_the_beginning(command, here, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    (here / "pairs.tsv").write_text("a dog\tein hund\n" * 40)
    line = refused(command, here, "train", "translate", "--data", "pairs.tsv")
    assert "BLEU needs sacrebleu: pip install 'eqxformer[evaluate]'" in line


def test_a_batch_of_so_many_tokens_has_no_number_of_sequences(command, here):
    (here / "pairs.tsv").write_text("a dog\tein hund\n" * 40)
    line = refused(command, here, "train", "translate", "--data", "pairs.tsv", "--batch", 4)
    assert "Pairs has as many as fit: give --set data.tokens=NUMBER instead of --batch 4." in line


def test_ctrl_c_before_training_leaves_nothing(command, here, monkeypatch):
    def press(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("eqxformer.training.recipes.language_model.read_corpus", press)
    code, out, err = command("train")
    assert (code, out, err.strip()) == (130, "", "Error: interrupted.")
    assert not list(here.iterdir())


def test_a_command_that_does_not_exist(command, here):
    assert "No such command 'trian'; see eqxformer --help" in refused(command, here, "trian")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing", "--prompt", "a"], "There is no directory missing"),
        (["./missing", "--prompt", "a"], "`missing` is not a directory; name a run that"),
        (["./missing", "--chat", "--prompt", "a"], "`missing` is not a directory; name a run that"),
        ([".", "--prompt", "a"], "`.` has no run.json"),
        ([], "Missing argument 'SOURCE'; see eqxformer generate --help"),
    ],
)
def test_runs_that_are_none(command, here, arguments, message):
    assert message in refused(command, here, "generate", *arguments)


@pytest.mark.parametrize(
    ("run_name", "arguments", "message"),
    [
        ("text", ["--prompt", "ωμέγα"], "characters outside the alphabet: 'έ', 'α', 'γ', 'μ', 'ω'"),
        ("text", ["--prompt", ""], "The prompt must have at least one character"),
        ("text", ["--prompt", "1", "--max-new-tokens", "0"], "`max_new_tokens` must be at least 1"),
        ("text", ["--prompt", "1", "--temperature", "-1"], "`temperature` must be above 0"),
        ("text", ["--prompt", "1", "--temperature", "nan"], "`temperature` must be above 0"),
        ("text", ["--prompt", "1", "--top-k", "-1"], "must be at least 1; got -1"),
        ("rot13", ["--prompt", "Hey!"], "characters outside the alphabet: '!', 'H'"),
        ("rot13", ["--prompt", "pneumonoultramicroscopic"], "A word may have 15 letters"),
        ("rot13", ["--prompt", " "], "The prompt has no word"),
    ],
)
def test_prompts_that_a_model_cannot_read(command, here, trained, run_name, arguments, message):
    assert message in refused(command, here, "generate", trained / run_name, *arguments)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", "run.json` is not JSON"),
        ("run.json", '{"recipe": "rot14"}', "There is no recipe `rot14`"),
        ("run.json", '{"recipe": ["text"]}', "There is no recipe"),
        (
            "run.json",
            '{"recipe": "rot13", "experiment": 3}',
            "has no experiment; the run is not complete",
        ),
        ("tokenizer.json", '{"type": "Pickle"}', "`Pickle` is not a known type of config"),
        ("model.safetensors", "torn", "is not a whole safetensors file"),
        ("config.json", "{}", "was not written by eqxformer"),
    ],
)
def test_runs_that_are_broken(command, here, trained, name, content, message):
    copied = here / "run"
    copied.mkdir()
    for file in filter(Path.is_file, (trained / "rot13").iterdir()):
        (copied / file.name).write_bytes(file.read_bytes())
    (copied / name).write_text(content)
    assert message in refused(command, here, "generate", copied, "--prompt", "hey")


def test_a_saved_model_without_a_tokenizer(command, here, trained):
    from eqxformer.checkpoints.native import load

    save(load(trained / "rot13"), here / "model")
    line = refused(command, here, "generate", here / "model", "--prompt", "hey")
    assert f"There is no tokenizer.json in {here / 'model'}" in line


def test_seeds_that_are_none_of_a_checkpoint(command, here, checkpoint):
    for seed in (-1, 2**63):
        line = refused(command, here, "generate", checkpoint, "--prompt", "a", "--seed", seed)
        assert f"`seed` must be at least 0 and below 2**63; got {seed}" in line
