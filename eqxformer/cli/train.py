"""`eqxformer train`: from a recipe to a run directory."""

import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jax
from rich.console import Console

from eqxformer.bench.ceilings import step_flops
from eqxformer.cli.beginning import (
    ONLY_SHOWN,
    about_run,
    begun,
    chosen_recipe,
    create,
    meet,
    planned,
    start_of,
    task_of,
    told_directory,
)
from eqxformer.cli.errors import Failure, Mistake, explained
from eqxformer.config import Config
from eqxformer.data.feed import feed
from eqxformer.inspect.table import table
from eqxformer.losses.scores import measured
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.sharding import Placement
from eqxformer.sharding.mesh import spelled
from eqxformer.training.best import EarlyStopping, SaveBest
from eqxformer.training.callbacks import Callback, Evaluate, Save, ShowSamples, Validate
from eqxformer.training.checkpoints import CheckpointNotWritten, Checkpoints, DamagedCheckpoints
from eqxformer.training.experiment import Experiment, Recipe, Task
from eqxformer.training.measures import Measure
from eqxformer.training.processes import all_or_none, check_alike, told_by_first
from eqxformer.training.progress import ProgressBar
from eqxformer.training.recipes import RECIPES
from eqxformer.training.records import LossPlot, MetricsFile
from eqxformer.training.run_directory import RunDirectory, refuse_existing
from eqxformer.training.sinks import TensorBoard, WeightsAndBiases
from eqxformer.training.trainer import NonFiniteLoss, Trainer

_HELP = (
    "Train a model as RECIPE says; the first one if none is named.\n\n\b\nRecipes:\n"
    + "\n".join(f"  {each.name:<11} {each.summary}" for each in RECIPES.values())
)
_EXAMPLES = """\b
Examples:
  eqxformer train
  eqxformer train --data book.txt --out runs/book
  eqxformer train rot13 --seed 1
  eqxformer train --out runs/book --resume
  eqxformer train --from path/or/hub-id --data book.txt --set data.length=256
  eqxformer train --mesh fsdp=4,tensor=2
  eqxformer train --dry-run
  eqxformer train --set 'model.blocks.*.attention.heads=8' --set optimizer.learning_rate.peak=1e-3
"""


@click.command(help=_HELP, epilog=_EXAMPLES)
@click.argument("name", metavar="[RECIPE]", required=False)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="What to learn from: a UTF-8 text, .jsonl, or a directory of texts, as the recipe says.",
)
@click.option(
    "--from",
    "source",
    metavar="SOURCE",
    help="Go on from a model, not from random weights: a run, a checkpoint's directory, what "
    "`ef.save` wrote with a tokenizer.json beside it, or an id of the Hub.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Run directory to make.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run in --out from its newest checkpoint, or begin it if there is none.",
)
@click.option("--steps", type=int, help="Training steps.")
@click.option(
    "--batch", type=int, help="Sequences in a step; not of `translate`, which counts data.tokens."
)
@click.option("--seed", type=int, help="What all random numbers follow from.")
@click.option(
    "--log",
    "sinks",
    multiple=True,
    type=click.Choice(["tensorboard", "wandb"]),
    help="Where else the numbers go, beside metrics.jsonl; may be given twice.",
)
@click.option(
    "--watch",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Should numbers break, say which first; they must fit the range of this type.",
)
@click.option("--mesh", metavar="AXES", help="Devices that share the work: fsdp=4,tensor=2.")
@click.option(
    "--processes",
    metavar="auto|RANK/COUNT@HOST:PORT",
    help="Take part in a run of several processes, such as one a host, along --mesh.",
)
@click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="Any other setting.")
@click.option("--dry-run", is_flag=True, help="Show everything that can be set, and stop.")
def train(
    name: str | None,
    data: Path | None,
    source: str | None,
    out: Path | None,
    resume: bool,
    steps: int | None,
    batch: int | None,
    seed: int | None,
    sinks: tuple[str, ...],
    watch: str | None,
    mesh: str | None,
    processes: str | None,
    settings: tuple[str, ...],
    dry_run: bool,
) -> int:
    """Train a model."""
    given = (*_shortcuts(steps, batch, seed, watch), *settings)
    with explained():
        meet(processes, mesh)
        before = begun(out) if resume else None
        chosen = chosen_recipe(name, before)
        out = told_directory(chosen.name) if out is None else out
        if before is None:
            told_by_first(lambda: refuse_existing(out))
        with all_or_none():
            start = start_of(source, before)
            task = task_of(chosen, data, start, before)
            _check_batch(batch, task.experiment)
            experiment, placement, skeleton, identity = planned(task, before, given, mesh)
            _check_peak(experiment)
            also = [_SINKS[sink](out, experiment) for sink in sinks]
        check_alike({**identity, "beside": _beside(experiment)})
    first = jax.process_index() == 0  # the one of several that speaks
    console = Console(soft_wrap=True, highlight=False, markup=False, quiet=not first)
    console.print(f"{table(skeleton, trains=experiment.trains)}\n")
    if dry_run:
        console.print(experiment.in_full())
        return 0
    console.print(_plan(chosen, task, experiment, out, _laid(placement, skeleton)))
    with explained():
        model = experiment.init(placement)
        if before is None:
            about = about_run(chosen, task, experiment, data, start)
            # From here on there is always a model to load, however this ends.
            before = create(out, about, task, experiment.model, model)
    return _conduct(model, task, experiment, before, console, also, placement)


def _shortcuts(
    steps: int | None, batch: int | None, seed: int | None, watch: str | None
) -> list[str]:
    """Options that are settings, as --set has them."""
    values = {"steps": steps, "data.batch": batch, "seed": seed}
    given = [f"{path}={value}" for path, value in values.items() if value is not None]
    return given + ([] if watch is None else [f'watch={{"type": "Watch", "fits": "{watch}"}}'])


def _check_batch(batch: int | None, experiment: Experiment) -> None:
    """Raises `ValueError` where a step has no such number of sequences."""
    data = experiment.data
    if batch is not None and not hasattr(data, "batch"):
        raise ValueError(
            f"--batch is for data with so many sequences in a step; {data.type_name} has as many "
            f"as fit: give --set data.tokens=NUMBER instead of --batch {batch}."
        )


def _check_peak(experiment: Experiment) -> None:
    """Raises `ValueError` for a peak of which no share can be measured."""
    if experiment.peak_flops is not None and _flops(experiment) is None:
        raise ValueError(
            "`peak_flops` changes nothing here: operations are counted of a DecoderLM without "
            "windows and experts only. Leave it away, or --set peak_flops=null."
        )


class _Lengthen(Callback):
    """Says in `run.json` how many steps the run has, once no other process can be training it."""

    def __init__(self, run: RunDirectory, steps: int) -> None:
        self.run, self.steps = run, steps

    def started(self, trainer: Trainer) -> None:
        told_by_first(lambda: self.run.lengthen(self.steps))


def _conduct(
    model: Any,
    task: Task,
    experiment: Experiment,
    run: RunDirectory,
    console: Console,
    also: list[Callback],
    placement: Placement | None,
) -> int:
    """Trains, shows what came out and says where it is; returns the exit code."""
    save = Save(run.save, every=experiment.validate_every)
    own = task.callbacks(experiment, run.path)
    evaluate = Evaluate(lambda model: task.evaluate(model, experiment))
    identity = experiment.identity()
    # What no step follows from may have been thought to matter when the run began.
    beside = (f"experiment.{name}" for name in _beside(experiment))
    trainer = Trainer(
        model,
        feed(task.batches(experiment), ahead=2),
        experiment.optimizer.build(experiment.steps),
        experiment.steps,
        key=experiment.key("steps"),
        loss=experiment.loss,
        microbatch=experiment.microbatch,
        trains=experiment.trains,
        precision=experiment.precision,
        skips=experiment.skips,
        watch=experiment.watch,
        callbacks=[
            _Lengthen(run, experiment.steps),
            *own,
            save,
            evaluate,
            *_callbacks(task, experiment, run, console),
            *also,
        ],
        checkpoints=Checkpoints(
            run.checkpoints,
            every=experiment.checkpoint_every or experiment.validate_every,
            identity={"experiment": identity, "data": task.about},
            only_shown=(*ONLY_SHOWN, *beside),
            warn=console.print,
        ),
        placement=placement,
    )
    try:
        trainer.fit()
        if not trainer.interrupted:
            if trainer.stopped:
                console.print(f"\nStopped after step {trainer.step:,}: {trainer.stopped}.")
            console.print(f"\n{task.conclude(evaluate.values, experiment)}\n")
            console.print(f"{task.sample(trainer.outcome, experiment, trainer.step)}\n")
    except NonFiniteLoss as error:
        raise Failure(f"{_told(error)} The model of step {save.step} is in {run.path}.") from error
    except (CheckpointNotWritten, DamagedCheckpoints) as error:
        raise Failure(_told(error)) from error
    except ValueError as error:
        raise Mistake(_told(error)) from error
    except OSError as error:
        raise Failure(f"{run.path} cannot be written: {error.strerror or error}.") from error
    except KeyboardInterrupt as error:
        trainer.signal = signal.SIGINT
        console.print("\n".join(_notes(error)), end="\n" * bool(_notes(error)))
    if trainer.signal is not None:
        console.print(f"Interrupted; the model of step {save.step:,} is saved.")
        words = ("eqxformer", "train", "--out", str(run.path), "--resume")
        console.print(f"Go on: {' '.join(map(_quoted, words))}")
    words = ("eqxformer", "generate", str(run.path), "--prompt", experiment.prompt)
    console.print(f"Run:  {run.path}\nNext: {' '.join(map(_quoted, words))}")
    return 0 if trainer.signal is None else 128 + trainer.signal


def _beside(experiment: Experiment) -> dict[str, Any]:
    """The settings that no step follows from, but for where the first weights lie."""
    left = {*experiment.identity(), "checkpoint"}
    return {name: value for name, value in experiment.to_dict().items() if name not in left}


def _told(error: BaseException) -> str:
    """What an error says, and what failed beside it."""
    return " ".join([str(error), *_notes(error)])


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def _callbacks(
    task: Task, experiment: Experiment, run: RunDirectory, console: Console
) -> list[Callback]:
    """Numbers to the run directory, numbers and samples to the terminal."""
    callbacks: list[Callback] = [
        MetricsFile(run.path / "metrics.jsonl"),
        LossPlot(run.path / "loss.png", history=run.path / "metrics.jsonl"),
        SaveBest(run.save_best),
        Validate(
            task.validation(experiment),
            every=experiment.validate_every,
            loss=measured(experiment.loss),
        ),
    ]
    callbacks.append(_measure(experiment))
    if experiment.sample_every is not None:

        def draw(model: Any, step: int) -> str:
            return f"{task.sample(model, experiment, step)}\n"

        callbacks.append(ShowSamples(draw, console.print, every=experiment.sample_every))
    if experiment.patience is not None:
        callbacks.append(EarlyStopping(patience=experiment.patience))
    return [*callbacks, ProgressBar(console)]


def _measure(experiment: Experiment) -> Measure:
    """Numbers about the run itself, as often as it is validated."""
    return Measure(
        every=experiment.validate_every,
        learning_rate=lambda step: experiment.optimizer.rate(step, of=experiment.steps),
        flops=_flops(experiment),
        peak=experiment.peak_flops,
    )


def _flops(experiment: Experiment) -> float | None:
    """Operations of a step; None where nobody has counted them, as of windows and experts."""
    if not isinstance(experiment.model, DecoderLM.Config):
        return None
    try:
        return step_flops(experiment.model, *experiment.data.shape)
    except NotImplementedError:
        return None


_SINKS: dict[str, Callable[[Path, Experiment], Callback]] = {
    "tensorboard": lambda out, _: TensorBoard(out / "tensorboard"),
    "wandb": lambda out, experiment: WeightsAndBiases(
        "eqxformer", name=out.name, config=experiment.to_dict(), directory=out
    ),
}


def _laid(placement: Placement | None, skeleton: Any) -> list[str]:
    """What is said of a mesh: its axes, and what they cannot cut."""
    if placement is None:
        return []
    whole = (f"             not cut: {line}" for line in placement.whole(skeleton))
    return [f"  mesh       {spelled(placement.sizes)}", *whole]


def _plan(chosen: Recipe, task: Task, experiment: Experiment, out: Path, mesh: list[str]) -> str:
    """What is about to happen, before it does."""
    rows, length = experiment.data.shape
    tokens = rows * length * experiment.steps
    return "\n".join(
        [
            f"{chosen.name}: {chosen.summary}",
            f"  data       {task.describe(experiment)}",
            f"  training   {experiment.steps:,} steps of {rows} x {length} tokens, "
            f"{tokens:,} tokens in all",
            f"  optimizer  {_one_line(experiment.optimizer)}",
            *([f"  from       {experiment.checkpoint}"] if experiment.checkpoint else []),
            *mesh,
            f"  run        {out}",
            "",
        ]
    )


def _one_line(config: Config) -> str:
    text = " ".join(str(config).split())
    return text.replace("( ", "(").replace(", )", ")")


def _quoted(word: str) -> str:
    """A word as a shell wants it, on one line."""
    return shlex.quote(word) if word.isprintable() else f"${word!r}"
