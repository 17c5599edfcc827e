"""`eqxformer score`: how likely a model finds a text."""

import json
import math
from pathlib import Path
from typing import Any

import click

from eqxformer.cli.errors import explained
from eqxformer.cli.reading import read_model, trained_window
from eqxformer.cli.texts import given_text
from eqxformer.generation.score import score as score_rows
from eqxformer.generation.state import positions_of
from eqxformer.models.decoder_lm import DecoderLM

_EXAMPLES = """\b
Examples:
  eqxformer score path/or/hub-id --text "The cat sat on the mat."
  eqxformer score path/or/hub-id --file book.txt --window 512
  eqxformer score runs/text-20250101-120000 --text "the end" --tokens
"""
# How a checkpoint calls the length of the texts that it was trained on.
_TRAINED = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


@click.command(epilog=_EXAMPLES)
@click.argument("source", metavar="SOURCE")
@click.option("--text", help="The text.")
@click.option("--file", type=click.Path(path_type=Path), help="The text from a file; - is stdin.")
@click.option(
    "--window",
    type=int,
    help="Tokens that are seen at once.  [default: as many as the model has positions for, and as "
    "the checkpoint or the run was trained with]",
)
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

    SOURCE is a run that `eqxformer train` made or a model in one, a checkpoint's directory, or an
    id of the Hugging Face Hub. The first token is what the rest is measured from. A text longer
    than the window is read in several, each of which begins with half of the one before.
    """
    with explained():
        given = given_text(text, file, "--text")
        if not given:
            raise ValueError('There is no text to score; give one as in --text "The cat sat."')
        model, encode = read_model(source, dtype)
        ids, words = encode(given)
        if not isinstance(model, DecoderLM):
            raise ValueError(f"A text is scored by a decoder; this is {type(model).__name__}.")
        if len(ids) < 2:
            raise ValueError(f"The text must have at least two tokens; got {len(ids)}.")
        if window is None:
            window = _window(source, model.config)
        numbers = score_rows(model, [ids], window=window)[0]
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


def _window(source: str, config: Any) -> int | None:
    """How many tokens a model may see at once; None if nothing says so.

    Rotary positions have no end, but a checkpoint says up to which it was trained, and a run how
    long its rows were; behind it the numbers would be those of a model that is lost.
    """
    said = {} if config.origin is None else json.loads(config.origin.settings)
    trained = (said.get(name) for name in _TRAINED)
    found = next((each for each in trained if isinstance(each, int) and each > 1), None)
    lengths = (found, trained_window(source), positions_of(config))
    return min((length for length in lengths if length is not None), default=None)
