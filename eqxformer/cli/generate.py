"""`eqxformer generate`: what a trained model, or a checkpoint, answers to a prompt."""

import dataclasses
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import click
import jax

from eqxformer.checkpoints.native import RUN, load
from eqxformer.cli.errors import explained
from eqxformer.cli.reading import run_with
from eqxformer.cli.sampling import over, sampling_options
from eqxformer.cli.texts import given_text
from eqxformer.generation.settings import GenerationSettings
from eqxformer.generation.warpers import Temperature
from eqxformer.models.encoder_decoder import EncoderDecoder
from eqxformer.pretrained.checkpoint import CONFIG
from eqxformer.text import TextGenerator
from eqxformer.training.experiment import Experiment, Recipe, Request, check_seed
from eqxformer.training.recipes import recipe
from eqxformer.training.run_directory import RunDirectory

_EXAMPLES = """\b
Examples:
  eqxformer generate runs/text-20250101-120000 --prompt "The "
  eqxformer generate runs/text-20250101-120000/best --prompt "The "
  eqxformer generate path/or/hub-id --prompt "Once upon a time" --temperature 0.8 --top-p 0.9
  eqxformer generate path/or/hub-id --file letter.txt --beams 4
  eqxformer generate path/or/hub-id --chat
"""
_LONG = 400  # tokens, where a checkpoint says nothing


@click.command(epilog=_EXAMPLES)
@click.argument("source", metavar="SOURCE")
@click.option("--prompt", help="What the model goes on from, translates, or answers.")
@click.option("--file", type=click.Path(path_type=Path), help="The prompt from a file; - is stdin.")
@click.option(
    "--max-new-tokens", type=int, help=f"How much more.  [default: what SOURCE says, else {_LONG}]"
)
@sampling_options
@click.option("--stop", multiple=True, help="End before this text; may be given several times.")
@click.option("--seed", type=int, default=0, show_default=True, help="For another answer.")
@click.option("--chat", is_flag=True, help="Talk: the prompt is what a person says.")
@click.option("--system", help="With --chat, what the model is told before all else.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of weights.")
def generate(
    source: str,
    prompt: str | None,
    file: Path | None,
    max_new_tokens: int | None,
    stop: tuple[str, ...],
    seed: int,
    chat: bool,
    system: str | None,
    dtype: str | None,
    **asked: Any,
) -> None:
    """Let the model in SOURCE go on from a prompt.

    SOURCE is a run that `eqxformer train` made or a model in one, a checkpoint's directory, or an
    id of the Hugging Face Hub. Without --prompt and --file, the prompt is read from standard input;
    with --chat at a terminal, it is a conversation. How tokens are chosen is up to the checkpoint
    where no option says it; a run of a language model draws at temperature 0.8.
    """
    with explained():
        text = given_text(prompt, file, "--prompt")
        if file is not None and str(file) != "-" and text is not None:
            text = text.removesuffix("\n")  # what an editor puts behind the last line
        if system is not None and not chat:
            raise ValueError("--system is for --chat.")
        run = _run(source)
        if run is not None:
            _refuse_for_runs(chat=chat or None, dtype=dtype, stop=stop or None, **_beams(asked))
            pieces = _of_run(run, Path(source), text, max_new_tokens, asked, seed)
        else:
            writer = TextGenerator.read(source, dtype=dtype)
            writer = dataclasses.replace(writer, settings=over(writer.settings, asked))
            answers = _Answers(writer, max_new_tokens, stop, seed)
            if chat and text is None:
                return _converse(answers, system)
            pieces = answers.chat(_messages(system, text)) if chat else answers.text(text)
        _print(pieces)


class _Answers:
    """What a checkpoint answers, each time with other random numbers."""

    def __init__(
        self, writer: TextGenerator, new: int | None, stop: tuple[str, ...], seed: int
    ) -> None:
        check_seed(seed)
        said = writer.settings
        limited = said.max_new_tokens is not None or said.max_length is not None
        self._options = {"max_new_tokens": new or (None if limited else _LONG), "stop": stop}
        self._writer, self._key, self._turn = writer, jax.random.key(seed), 0
        if new is not None and new < 1:
            raise ValueError(f"`max_new_tokens` must be at least 1; got {new}.")

    def text(self, prompt: str | None) -> Iterable[str]:
        """The prompt and how the model goes on; of an encoder-decoder, its target alone."""
        if not prompt:
            raise ValueError('The prompt is empty; give one as in --prompt "Once upon a time".')
        new = self._stream(prompt)  # what is wrong is said before anything is printed
        return new if isinstance(self._writer.model, EncoderDecoder) else chain([prompt], new)

    def chat(self, messages: list[dict[str, str]]) -> Iterable[str]:
        """The answer to a conversation."""
        return self._stream(messages)

    def _stream(self, prompt: Any) -> Iterable[str]:
        key = jax.random.fold_in(self._key, self._turn)
        self._turn += 1
        return self._writer.stream(prompt, key=key, **self._options)


def _messages(system: str | None, text: str | None) -> list[dict[str, str]]:
    told = [] if system is None else [{"role": "system", "content": system}]
    return told if text is None else [*told, {"role": "user", "content": text}]


def _converse(answers: _Answers, system: str | None) -> None:
    """Questions from the terminal and their answers, until the end of input or an empty line."""
    messages = _messages(system, None)
    click.echo("An empty line ends the conversation.", err=True)
    while True:
        try:
            said = click.prompt("you", prompt_suffix="> ", default="", show_default=False, err=True)
        except click.Abort:
            return click.echo(err=True)
        if not said.strip():
            return None
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": _print(answers.chat(messages))})


def _print(pieces: Iterable[str]) -> str:
    """Prints text as it comes, and gives all of it."""
    whole = []
    for piece in pieces:
        click.echo(piece, nl=False)
        whole.append(piece)
    click.echo()
    return "".join(whole)


def _run(source: str) -> RunDirectory | None:
    """The run that SOURCE is or belongs to; None for a checkpoint."""
    path = Path(source)
    run = run_with(path)
    if run is not None or _may_be_checkpoint(source):
        return run
    if not path.is_dir():
        raise ValueError(
            f"`{path}` is not a directory; name a run that `eqxformer train` made, a checkpoint's "
            "directory, or an id of the Hub."
        )
    return RunDirectory.open(path)


def _of_run(
    directory: RunDirectory,
    model: Path,
    prompt: str | None,
    new: int | None,
    asked: dict[str, Any],
    seed: int,
) -> Iterable[str]:
    """The answer of a model in the directory of a run."""
    usual = GenerationSettings(samples=True, warpers=(Temperature(0.8),))
    request = Request(prompt or "", over(usual, asked).sampler, _LONG if new is None else new, seed)
    request.check()
    chosen, experiment = _read(directory)
    if not chosen.draws:
        _refuse_drawing(chosen.name, {**asked, "max_new_tokens": new, "seed": seed or None})
    return chosen.respond(load(model), directory.tokenizer(), experiment, request)


def _may_be_checkpoint(source: str) -> bool:
    """Whether SOURCE has a `config.json`, or is no path here and may be an id of the Hub."""
    path = Path(source)
    return (path / CONFIG).is_file() or not (path.exists() or source.startswith((".", "/")))


def _beams(asked: dict[str, Any]) -> dict[str, Any]:
    return {name: asked[name] for name in ("beams", "length_penalty")}


def _refuse_for_runs(**options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} is for checkpoints with a tokenizer; SOURCE is a run."
            )


def _refuse_drawing(name: str, options: dict[str, Any]) -> None:
    for option, value in options.items():
        if value is not None:
            raise ValueError(
                f"--{option.replace('_', '-')} changes nothing here: SOURCE is a run of `{name}`, "
                "which answers as it was told to in training and draws nothing."
            )


def _read(directory: RunDirectory) -> tuple[Recipe, Experiment]:
    """What `run.json` says was trained, and how."""
    about = directory.about()
    name, values = str(about.get("recipe")), about.get("experiment")
    chosen = recipe(name)
    if not isinstance(values, dict):
        raise ValueError(f"`{directory.path / RUN}` has no experiment; the run is not complete.")
    return chosen, Experiment.from_dict(values)
