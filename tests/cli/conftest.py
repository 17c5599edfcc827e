import contextlib
import io
import json

import pytest
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import eqxformer as ef
from eqxformer.cli.commands import run
from eqxformer.training.recipes import language_model
from tests.helpers.models import filled
from tests.helpers.shared import shared_programs


def small_model(layers):
    """Settings of a narrow Llama of so many blocks."""
    config = ef.families.llama(vocab=2, dim=16, layers=layers, heads=4, hidden=16)
    blocks = json.dumps(config.to_dict()["blocks"])
    return ["--set", "model.dim=16", "--set", f"model.blocks={blocks}"]


MODEL = small_model(layers=1)  # so that little is compiled
SMALL = ["--steps=6", "--batch=2", *MODEL, "--set", "validate_every=3"]
TEXT = " ".join(f"{number} times" for number in range(300))


@contextlib.contextmanager
def quick_runs():
    """Runs share their programs; a sample is a little longer than what a model sees at once."""
    with pytest.MonkeyPatch.context() as patch, shared_programs():
        patch.setattr(language_model, "SAMPLE_TOKENS", 80)
        yield


@pytest.fixture(autouse=True, scope="module")
def _quick():
    with quick_runs():
        yield


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory with a text to learn from beside it."""
    (tmp_path / "work").mkdir()
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def command(capsys):
    """Runs `eqxformer` with arguments; gives the exit code and what was printed to both ends."""

    def call(*arguments):
        code = run([str(each) for each in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory, worker_id):
    """Runs of a few steps, and beside each what it printed.

    They are `text`, `rot13`, and `again`, for which the command of `rot13` was given once more.
    Made by the first worker that asks, for all of them: nobody may change it.
    """
    home = tmp_path_factory.getbasetemp()
    place = (home if worker_id == "master" else home.parent) / "runs"
    with FileLock(f"{place}.lock"):
        if (place / "again.out").exists():  # what is written last
            return place
        place.mkdir(exist_ok=True)
        (place / "text.txt").write_text(TEXT)
        more = ["--data", str(place / "text.txt"), "--set", "sample_every=3"]
        more += ["--set", "prompt=7 times"]
        rot13 = ["rot13", "--steps=40", "--batch=8"]
        asked = {"text": ["text", *SMALL, *more], "rot13": rot13, "again": rot13}
        for name, arguments in asked.items():
            with contextlib.redirect_stdout(io.StringIO()) as printed, quick_runs():
                assert run(["train", *arguments, "--out", str(place / name)]) == 0
            (place / f"{name}.out").write_text(printed.getvalue())
    return place


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny GPT-2 of transformers with a tokenizer, settings and a chat template."""
    place = tmp_path_factory.mktemp("checkpoints") / "tiny"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": 300, "special_tokens": ["<|end|>"], "initial_alphabet": letters}
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(**options))
    config = ef.families.gpt(vocab=300, dim=16, layers=1, heads=2, context=64)
    save(config, place, tokenizer)
    settings = {"eos_token_id": 0, "do_sample": True, "temperature": 0.9, "max_new_tokens": 12}
    (place / "generation_config.json").write_text(json.dumps(settings))
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    (place / "chat_template.jinja").write_text(template)
    return place


def save(config, place, tokenizer):
    """A model of random weights, all of which count, with its tokenizer."""
    ef.save_pretrained(filled(config), place)
    tokenizer.save(str(place / "tokenizer.json"))
