"""`eqxformer score`: how likely a model finds a text."""

import math
from pathlib import Path
from typing import Any

import click

from eqxformer.checkpoints.native import load
from eqxformer.cli.errors import explained
from eqxformer.cli.texts import given_text
from eqxformer.generation.score import score as score_rows
from eqxformer.generation.state import positions_of
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.pretrained.checkpoint import is_native
from eqxformer.pretrained.load import from_pretrained, load_tokenizer
from eqxformer.pretrained.locate import locate
from eqxformer.training.run_directory import RUN, RunDirectory

_EXAMPLES = """\b
Examples:
  eqxformer score path/or/hub-id --text "The cat sat on the mat."
  eqxformer score path/or/hub-id --file book.txt --window 512
  eqxformer score runs/text-20250101-120000 --text "the end" --tokens
"""


@click.command(epilog=_EXAMPLES)
@click.argument("source", metavar="SOURCE")
@click.option("--text", help="The text.")
@click.option("--file", type=click.Path(path_type=Path), help="The text from a file; - is stdin.")
@click.option("--window", type=int, help="Tokens that are seen at once.  [default: as many as can]")
@click.option("--tokens", is_flag=True, help="Print every token with its log-probability.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of weights.")
def score(
    source: str,
    text: str | None,
    file: Path | None,
    window: int | None,
    tokens: bool,
    dtype: str | None,
) -> None:
    """Print how likely the decoder in SOURCE finds a text: log-probability and perplexity.

    SOURCE is a run that `eqxformer train` made, a checkpoint's directory, or an id of the Hugging
    Face Hub. The first token is what the rest is measured from. A text longer than the window is
    read in several, each of which begins with half of the one before.
    """
    with explained():
        given = given_text(text, file, "--text")
        if not given:
            raise ValueError('There is no text to score; give one as in --text "The cat sat."')
        model, ids, words = _read(source, given, dtype)
        if not isinstance(model, DecoderLM):
            raise ValueError(f"A text is scored by a decoder; this is {type(model).__name__}.")
        room = positions_of(model.config)
        if window is None and room is not None:
            window = min(room, len(ids))
        numbers = score_rows(model, [ids], window=window)[0]
        if not numbers:
            raise ValueError("The text must have at least two tokens; got one.")
    if tokens:
        for word, number in zip(words[1:], numbers, strict=True):
            click.echo(f"{number:10.4f}  {word!r}")
    total = math.fsum(numbers)
    mean = total / len(numbers)
    size = len(given.encode())
    click.echo(f"tokens            {len(numbers):,} of {len(ids):,}, behind the first")
    click.echo(f"log-probability   {total:,.4f} nats, {mean:.4f} a token")
    click.echo(f"perplexity        {math.exp(-mean):,.4f}")
    click.echo(f"bits a byte       {-total / math.log(2) / size:.4f} of {size:,} bytes")


def _read(source: str, text: str, dtype: str | None) -> tuple[Any, list[int], list[str]]:
    """The model, the ids of the text, and the text of each."""
    if Path(source, RUN).is_file():
        if dtype is not None:
            raise ValueError("--dtype is for checkpoints; SOURCE is a run.")
        directory = RunDirectory.open(Path(source))
        characters: Any = directory.tokenizer()
        return directory.load(), characters.encode(text).tolist(), list(text)
    folder = locate(source)
    tokenizer = load_tokenizer(folder)
    tokenizer.no_truncation()
    encoded = tokenizer.encode(text)
    model = load(folder) if is_native(folder) else from_pretrained(folder, dtype=dtype)
    return model, encoded.ids, [text[a:b] or t for (a, b), t in _spans(encoded)]


def _spans(encoded: Any) -> list[tuple[tuple[int, int], str]]:
    return list(zip(encoded.offsets, encoded.tokens, strict=True))
