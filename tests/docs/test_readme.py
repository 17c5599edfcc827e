"""The README's Python runs, from top to bottom; the checkpoints that it names are tiny ones."""

import pathlib
import re
import shutil

import jax
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import eqxformer as ef

README = pathlib.Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A directory in which the checkpoints that the page names are tiny ones."""
    folder = tmp_path_factory.mktemp("checkpoints")
    words = {"[UNK]": 0, "hello": 1, "world": 2, "a": 3, "longer": 4, "sentence": 5}
    encoder = ef.families.bert(vocab=len(words), dim=32, layers=1, heads=4, hidden=64)
    sentences = folder / "sentence-transformers" / "all-MiniLM-L6-v2"
    ef.save_pretrained(encoder.build(key=jax.random.key(0)), sentences, model_type="bert")
    tokenizer = Tokenizer(WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(sentences / "tokenizer.json"))
    decoder = ef.families.llama(vocab=65, dim=32, layers=1, heads=4, hidden=64)
    model = decoder.build(key=jax.random.key(0))
    ef.save_pretrained(model, folder / "path" / "or" / "hub-id", model_type="llama")
    tokenizer.save(str(folder / "path" / "or" / "hub-id" / "tokenizer.json"))
    return folder


def test_the_snippets_run_one_after_the_other(checkpoints, tmp_path, monkeypatch):
    shutil.copytree(checkpoints, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    known = {}
    with jax.debug_key_reuse(False):  # a page may use `key` for several things
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"README block {number}", "exec"), known)
    assert known["tokens"].shape == (2, 3)  # those of the checkpoint's own tokenizer


def test_the_first_screen_holds_an_example_and_the_two_commands():
    screen = README.read_text(encoding="utf-8")[:2500]
    assert "pip install '.[train]' && eqxformer train" in screen
    assert "pip install '.[test]' && pytest" in screen
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 15
