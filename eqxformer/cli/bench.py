"""`eqxformer bench`: how fast this machine runs a model, beside what it can do at most."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from eqxformer.__about__ import __version__
from eqxformer.bench.asking import Progress, ask
from eqxformer.bench.harness import CandidateFailed, share_device
from eqxformer.bench.questions import QUESTIONS, Setting, askable
from eqxformer.bench.report import report
from eqxformer.bench.sizes import SIZES, size
from eqxformer.checkpoints.rebuild import shapes
from eqxformer.cli.errors import Failure, Mistake, explained
from eqxformer.cli.info import find
from eqxformer.config import Config
from eqxformer.generation.state import positions_of
from eqxformer.inspect.table import count
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.pretrained.presets import described
from eqxformer.strict_json import json_object

_BATCH, _SEQ = 8, 512  # of models that have no usual ones
_EXAMPLES = """\b
Examples:
  eqxformer bench
  eqxformer bench gpt2 --dtype bfloat16 --out gpt2.json
  eqxformer bench baby --question train --question decode
  eqxformer bench path/to/checkpoint --batch 1 --seq 256
"""


@click.command(epilog=_EXAMPLES)
@click.argument("source", default="nano", metavar="[SOURCE]")
@click.option(
    "--question",
    "questions",
    multiple=True,
    type=click.Choice(list(QUESTIONS)),
    help="What to ask; may be given several times.  [default: all]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="The type of weights and activations.",
)
@click.option("--batch", type=int, help="Sequences in a batch.")
@click.option("--seq", type=int, help="Tokens of a sequence; new ones follow half of them.")
@click.option(
    "--repetitions",
    type=click.IntRange(min=2),
    default=7,
    show_default=True,
    help="How often each question is asked.",
)
@click.option("--device", type=click.Choice(["cpu", "gpu"]), help="Where; JAX chooses if not said.")
@click.option(
    "--ceilings/--no-ceilings",
    default=True,
    help="Measure what the machine can do at most, or save the time.",
)
@click.option("--out", type=click.Path(path_type=Path), help="A JSON file to write, new or old.")
def bench(
    source: str,
    questions: tuple[str, ...],
    dtype: str,
    batch: int | None,
    seq: int | None,
    repetitions: int,
    device: Any,
    ceilings: bool,
    out: Path | None,
) -> None:
    """Measure how fast this machine runs a decoder with random weights.

    SOURCE is a size (vpj, nano, baby, gpt2, llama), a preset, a directory with a checkpoint, of
    which only the settings are read, or a JSON file with a config.

    \b
    train      a step with AdamW
    forward    the logits of a batch
    prefill    reading prompts into a cache
    decode     a token in every sequence
    attention  one layer's, forward and backward, without its projections

    Beside the median stands its share of what the machine can do at most, measured in turn with it:
    a large matrix product, and for decode the reading of memory.
    """
    share_device()
    with explained():
        setting = setting_of(source, batch, seq, dtype)
        _check_out(out)
        about, wanted = _about(setting), dict.fromkeys(questions or askable(setting))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{source}: {about}\n")
    found: dict[str, dict[str, Any]] = {}
    failure = None
    try:
        with _progress(console, repetitions) as progress:
            asked = ask(
                tuple(wanted),
                {**setting._asdict(), "config": setting.config.to_dict()},
                repetitions=repetitions,
                device=device,
                compared=ceilings,
                progress=progress,
            )
            found.update(asked)  # what has come stays when the rest does not
    except CandidateFailed as error:
        failure = Failure(str(error)) if found else Mistake(str(error))
    except KeyboardInterrupt:
        failure = click.Abort()
    if found:
        (machine, *_) = [result.pop("machine") for result in found.values()]
        console.print(report(found, machine, console.width))
        if out is not None:
            _write(out, source, setting, machine, found)
            console.print(f"\nwritten to {out}")
    if failure is not None:
        raise failure


def setting_of(source: str, batch: int | None, seq: int | None, dtype: str) -> Setting:
    """What is asked for, checked. Raises `ValueError` for what cannot be measured."""
    if source in SIZES:
        config, usual_batch, usual_seq = size(source)
    else:
        config, usual_batch, usual_seq = _config(source), _BATCH, _SEQ
    room = positions_of(config) if isinstance(config, DecoderLM.Config) else None
    usual_seq = usual_seq if room is None else min(usual_seq, room)
    setting = Setting(
        config,
        usual_batch if batch is None else batch,
        usual_seq if seq is None else seq,
        dtype,
    )
    setting.check()
    return setting


def _config(source: str) -> Any:
    """The config of a file, a checkpoint or a preset, without what it knows of its origin."""
    path = Path(source).expanduser()
    if path.is_file():
        return _in_file(path)
    try:
        config = find(source).skeleton.config
    except ValueError as error:
        if path.exists() or "/" in source:
            raise
        raise ValueError(f"{error} Sizes are {', '.join(SIZES)}.") from None
    return config.edit(origin=None) if getattr(config, "origin", None) is not None else config


def _in_file(path: Path) -> Any:
    """The config in a file, in our words or in those of transformers."""
    try:
        values = json_object(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if "model_type" in values:
        return described(values, str(path))[1]
    if "type" not in values:
        raise ValueError(
            f"{path} is no config: there is neither a `type`, as in what `Config.to_json` writes, "
            "nor a `model_type`, as in a config.json of transformers."
        )
    return Config.from_dict(values)


def _check_out(out: Path | None) -> None:
    """Refuses a place that cannot be written to before an hour is spent."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        what = "is a directory" if out.is_dir() else f"needs the directory {out.parent}"
        raise Mistake(f"--out {out} {what}; name a file, as in --out bench.json.")


def _about(setting: Setting) -> str:
    """The model and what it is given, in a line."""
    config = setting.config
    blocks = "block" if len(config.blocks) == 1 else "blocks"
    return (
        f"{count(shapes(config)):,} parameters in {len(config.blocks)} {blocks} of width "
        f"{config.dim:,}; {setting.batch:,} x {setting.seq:,} tokens, {setting.dtype}"
    )


@contextmanager
def _progress(console: Console, repetitions: int) -> Iterator[Progress]:
    """Says what is being done: live on a terminal, else a line per question."""
    with console.status("") if console.is_terminal else nullcontext() as status:

        def told(question: str, done: int) -> None:
            stage = f"{done} of {repetitions}" if done else "compiling"
            if status is not None:
                status.update(Text(f"{question}: {stage}"))
            elif not done:
                click.echo(f"{question} ...", err=True)

        yield told


def _write(
    out: Path,
    source: str,
    setting: Setting,
    machine: Mapping[str, Any],
    found: Mapping[str, Any],
) -> None:
    """Saves what was found, as the scripts in `benchmarks/` do."""
    about = {
        "source": source,
        "parameters": count(shapes(setting.config)),
        "batch": setting.batch,
        "seq": setting.seq,
        "dtype": setting.dtype,
    }
    machine = {**machine, "eqxformer": __version__, "command": ["eqxformer", *sys.argv[1:]]}
    text = json.dumps({"machine": machine, "results": {**about, **found}}, indent=2)
    try:
        out.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise Failure(f"{out} cannot be written: {error.strerror}.") from error
