"""What the commands of the pages presuppose: texts, tiny checkpoints, runs, a script.

Each is made of the standard library and of eqxformer alone, under the very name that the commands
call it by, so that a command can be run as it stands.
"""

import json
import pathlib
import subprocess
import textwrap
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import NamedTuple

import jax

import eqxformer as ef
from eqxformer.data.subwords import Subwords
from eqxformer.training.recipes.clock import ClockTimes

TEXT = "\n\n".join(topics[name] for name in sorted(topics))[:100_000]
SENTENCES = [" ".join(line.lower().split()) for line in TEXT.splitlines() if len(line.split()) > 4]
STEPS = 4


class Given(NamedTuple):
    """What a command calls by a name like `pattern`, and what makes it at a path of that name."""

    pattern: str
    make: Callable[[pathlib.Path], None]


def text(path: pathlib.Path) -> None:
    """A text, as anyone may have one."""
    path.write_text(TEXT, encoding="utf-8")


def letter(path: pathlib.Path) -> None:
    """A text short enough for a prompt."""
    path.write_text("Dear reader,\nonce upon a time", encoding="utf-8")


def books(path: pathlib.Path) -> None:
    """A directory of texts, some of them further below."""
    (path / "more").mkdir(parents=True)
    for name, part in ("a.txt", TEXT[:50_000]), ("more/b.txt", TEXT[50_000:]):
        (path / name).write_text(part, encoding="utf-8")


def stories(path: pathlib.Path) -> None:
    """Lines of JSON with a text in each."""
    lines = (json.dumps({"text": part}) + "\n" for part in TEXT.split("\n\n"))
    path.write_text("".join(lines), encoding="utf-8")


def parallel(
    source: str, target: str, train: str, valid: str, test: str
) -> Callable[[pathlib.Path], None]:
    """Files of lines, and of the same lines in a language whose words are ours backwards."""

    def make(path: pathlib.Path) -> None:
        path.mkdir(parents=True)
        at = 0
        for name, count in (train, 300), (valid, 16), (test, 4):
            lines = [" ".join(each.split()[:12]) for each in SENTENCES[at : at + count]]
            other = [" ".join(word[::-1] for word in each.split()) for each in lines]
            (path / f"{name}.{source}").write_text("\n".join(lines) + "\n", encoding="utf-8")
            (path / f"{name}.{target}").write_text("\n".join(other) + "\n", encoding="utf-8")
            at += count

    return make


def decoder(path: pathlib.Path) -> None:
    """A checkpoint of transformers with a tokenizer and a chat template; random weights."""
    tokenizer = ef.ByteLevelBPE(vocab=400).train(SENTENCES)
    config = ef.families.llama(vocab=tokenizer.vocab, dim=32, layers=4, heads=4, hidden=64)
    ef.save_pretrained(config.build(key=jax.random.key(0)), path, model_type="llama")
    tokenizer.save(path / "tokenizer.json")
    settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
    settings["max_position_embeddings"] = 256  # what it would have been trained with
    (path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    (path / "chat_template.jinja").write_text(template, encoding="utf-8")


def translator(path: pathlib.Path) -> None:
    """The same of an encoder-decoder."""
    tokenizer = ef.ByteLevelBPE(vocab=400).train(SENTENCES)
    config = ef.families.t5(vocab=tokenizer.vocab, dim=32, layers=2, heads=4, head_dim=8, hidden=64)
    ef.save_pretrained(config.build(key=jax.random.key(0)), path, model_type="t5")
    tokenizer.save(path / "tokenizer.json")


def sentence_encoder(path: pathlib.Path) -> None:
    """A directory of sentence-transformers whose tokenizer has read the times of the clock."""
    texts = [each.lower() for side in ClockTimes().longest() for each in side]
    tokenizer: Subwords = ef.WordBPE(vocab=400).train(texts)
    config = ef.families.bert(vocab=400, dim=32, layers=2, heads=4, hidden=64, context=64)
    config = config.edit(pooling=ef.Pooling.Config(take="mean", unit_length=True))
    ef.save_pretrained(config.build(key=jax.random.key(0)), path, model_type="bert")
    tokenizer.save(path / "tokenizer.json")


def gpt(path: pathlib.Path) -> None:
    """A model in our own format that is a GPT-2."""
    config = ef.families.gpt(vocab=400, dim=32, layers=2, heads=4, context=64)
    ef.save(config.build(key=jax.random.key(0)), path)


def run(path: pathlib.Path) -> None:
    """The run of a few steps on a text of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    book = path.parent / "book.txt"
    text(book)
    options = ("--steps", str(STEPS), "--set", "checkpoint_every=2")
    subprocess.run(
        ["eqxformer", "train", "--data", book, "--out", path, *options],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def script(path: pathlib.Path) -> None:
    """A script of the reader's, and beside it a package of theirs with a part in it."""
    package = path.parent / "mypackage"
    package.mkdir()
    (package / "__init__.py").write_text(
        textwrap.dedent(
            """\
            import equinox as eqx
            from jaxtyping import Array, Float


            class Twice(eqx.Module):
                def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
                    return 2 * x
            """
        ),
        encoding="utf-8",
    )
    path.write_text(
        textwrap.dedent(
            """\
            import eqxformer as ef, jax, jax.numpy as jnp
            from mypackage import Twice

            config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8)
            model = config.build(key=jax.random.key(0))
            print(Twice()(model(jnp.array([[1, 2, 3]]))).shape)
            """
        ),
        encoding="utf-8",
    )


GIVEN = (
    Given(r"\bbook\.txt", text),
    Given(r"\bletter\.txt", letter),
    Given(r"\bbooks\b(?=/)", books),
    Given(r"\bstories\.jsonl", stories),
    Given(r"\bDIRECTORY\b", parallel("en", "de", "train", "valid", "test")),
    Given(r"\bcorpus\b", parallel("fr", "en", "news", "dev", "newstest")),
    Given(
        r"\bmulti30k\b",
        parallel(
            "en", "de", *(f"{name}.lc.norm.tok" for name in ("train", "val", "test_2016_flickr"))
        ),
    ),
    Given(r"\bpath/or/hub-id\b", decoder),
    Given(r"\bpath/to/checkpoint\b", decoder),
    Given(r"\bgoogle/flan-t5-small\b", translator),
    Given(r"\bpath/to/all-MiniLM-L6-v2\b", sentence_encoder),
    Given(r"\bruns/mine\b", gpt),
    Given(r"\bruns/text-\d{8}-\d{6}\b", run),
    Given(r"\btrain\.py\b", script),
)
