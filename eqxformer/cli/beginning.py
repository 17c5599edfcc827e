"""What a run begins from: the others that take part, the run before, the recipe, the mesh."""

import contextlib
import datetime
import importlib.metadata
import itertools
import platform
from pathlib import Path
from typing import Any, NamedTuple

from eqxformer.__about__ import __version__
from eqxformer.checkpoints.native import TOKENIZER, shapes
from eqxformer.cli.memory import check_memory
from eqxformer.cli.settings import edited
from eqxformer.config import Config
from eqxformer.data.packing import Packing
from eqxformer.data.windows import Windows
from eqxformer.pretrained.locate import locate
from eqxformer.pretrained.save import carry_files
from eqxformer.sharding import Placement, Rules, make_mesh
from eqxformer.training.differences import differences
from eqxformer.training.experiment import Experiment, Recipe, Task
from eqxformer.training.processes import all_or_none, join, told_by_first
from eqxformer.training.recipes import RECIPES, recipe
from eqxformer.training.run_directory import RunDirectory
from eqxformer.training.start import Start, check_fits

# Of the data, what a file is called; its content is compared by its SHA-256.
ONLY_SHOWN = ("data.name", "data.checkpoint")


def meet(processes: str | None, mesh: str | None) -> None:
    """Meets the other processes, if there are any."""
    if processes is None:
        return
    if mesh is None:
        raise ValueError(
            "Several processes share the work along a mesh of all their devices; give it too, such "
            "as `--mesh fsdp=8` for 2 hosts of 4 devices."
        )
    join(processes)


def begun(out: Path | None) -> RunDirectory | None:
    """The run to go on with; None where there is nothing yet."""
    if out is None:
        raise ValueError("`--resume` needs `--out DIRECTORY`, the run to go on with.")
    return RunDirectory.open(out) if told_by_first(out.exists) else None


def chosen_recipe(name: str | None, before: RunDirectory | None) -> Recipe:
    """The recipe that was asked for, or that of the run; the first where nothing was said."""
    if before is None:
        return recipe(name or next(iter(RECIPES)))
    known = before.about()["recipe"]
    if name not in (None, known):
        raise ValueError(f"The run in `{before.path}` is of the recipe `{known}`; got `{name}`.")
    return recipe(known)


def refuse_changes(before: RunDirectory, now: dict[str, Any], steps: int) -> None:
    """Raises `ValueError` that shows what is not as it was when the run began."""
    known = before.experiment()
    then = {"experiment": known.identity(), "data": before.about()["data"]}
    lines = differences(then, now, but=ONLY_SHOWN)
    if steps < known.steps and "steps" not in known.identity():
        lines.append(f"steps: {known.steps:,} -> {steps:,}, and there can only be more of them")
    if lines:
        raise ValueError(
            f"The run in `{before.path}` cannot go on changed; then -> now: {'; '.join(lines)}. "
            "Leave it as it was, or begin another run."
        )


def data_of(data: Path | None, before: RunDirectory | None) -> Path | None:
    """The file that was asked for, or that of the run."""
    known = None if before is None else before.about().get("path")
    return Path(known) if data is None and known is not None else data


def start_of(source: str | None, before: RunDirectory | None) -> Start | None:
    """The model to begin from: the one that was asked for, or that of the run."""
    if source is not None:
        return Start(locate(source))
    known = None if before is None else before.about().get("from")
    if known is None:
        return None
    if not Path(known).is_dir():
        raise ValueError(
            f"There is no directory {known}, which the run began from; say where the model lies "
            "now, --from DIRECTORY."
        )
    return Start(Path(known))


def task_of(
    chosen: Recipe, data: Path | None, start: Start | None, before: RunDirectory | None
) -> Task:
    """The task of a recipe, which goes on from a model, and with a run, where there are some."""
    task = chosen.prepare(data_of(data, before))
    if before is not None:
        task.known = before.tokenizer()
    if start is not None:
        task.begin(start)
    return task


class Plan(NamedTuple):
    """What a run is made of, once all of it is known and allowed.

    `skeleton` is the model's shapes, `identity` what the bits of a step follow from.
    """

    experiment: Any
    placement: Placement | None
    skeleton: Any
    identity: dict[str, Any]


def planned(
    task: Task, before: RunDirectory | None, settings: tuple[str, ...], mesh: str | None
) -> Plan:
    """The experiment that was asked for; `ValueError` for whatever does not go together."""
    suggested = task.experiment
    if before is not None:  # where its first weights lie may have changed since
        suggested = before.experiment().edit(checkpoint=suggested.checkpoint)
    experiment = task.fitted(edited(suggested, settings))
    if experiment.checkpoint != suggested.checkpoint:
        raise ValueError("`checkpoint` is what --from names; give it there.")
    identity = {"experiment": experiment.identity(), "data": task.about}
    if before is not None:
        refuse_changes(before, identity, experiment.steps)
    task.check(experiment)
    placement = None if mesh is None else placed(mesh, experiment)
    check_memory(experiment, 1 if placement is None else placement.mesh.size)
    skeleton = shapes(experiment.model)
    _ = experiment.trains.mask(skeleton)  # says which of its paths lead nowhere
    if experiment.checkpoint:
        check_fits(experiment.checkpoint, skeleton)
    return Plan(experiment, placement, skeleton, identity)


def placed(mesh: str, experiment: Experiment) -> Placement:
    """The mesh that was asked for; `ValueError` where it cannot deal out a batch.

    Else every device would compute all of what cannot be dealt out.
    """
    placement = Placement(make_mesh(mesh), Rules(uneven="whole"))
    length, sequence = experiment.data.shape[1], placement.sizes.get("sequence", 1)
    if isinstance(experiment.data, Windows | Packing) and length % sequence:
        raise ValueError(
            f"The {length:,} tokens of a row cannot be dealt out to {sequence} devices, "
            f"sequence={sequence}; choose a length that is a multiple of it."
        )
    for rows in experiment.data.row_counts:
        placement.check_rows(rows)
        size = min(experiment.microbatch or rows, rows)
        for part in {size, rows % size} - {0, rows}:
            try:
                placement.check_rows(part)
            except ValueError as error:
                raise ValueError(f"With microbatch={size} of {rows} rows: {error}") from None
    return placement


def create(
    out: Path, about: dict[str, Any], task: Task, config: Config, model: Any
) -> RunDirectory:
    """Makes the directory of a run: whole, with a model to load, or not at all.

    What lies beside a checkpoint's weights goes with the model. All processes must ask.
    """
    with contextlib.ExitStack() as stack:

        def begin() -> str:
            made = RunDirectory.made(out, about=about, tokenizer=task.tokenizer)
            hidden = stack.enter_context(made).path
            carry_files(config, hidden, but=(TOKENIZER,))
            return str(hidden)

        hidden = RunDirectory(Path(told_by_first(begin)))
        with all_or_none():
            hidden.save(model)
        told_by_first(stack.close)  # none goes on before the directory is in its place
    return RunDirectory(out)


def about_run(
    chosen: Recipe, task: Task, experiment: Experiment, data: Path | None, start: Start | None
) -> dict[str, Any]:
    """What `run.json` says."""
    packages = ("jax", "jaxlib", "equinox", "optax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "recipe": chosen.name,
        "experiment": experiment.to_dict(),
        "data": task.about,
        "path": None if data is None else str(data.absolute()),
        "from": None if start is None else str(start.directory),
        "versions": {"eqxformer": __version__, "python": platform.python_version(), **versions},
    }


def told_directory(name: str) -> Path:
    """The directory that the first process chooses for a run."""
    return Path(told_by_first(lambda: str(default_directory(name))))


def default_directory(name: str) -> Path:
    """`runs/<recipe>-<date>-<time>`, with a number behind it where two begin at once."""
    first = Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    others = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([first], others) if not path.exists())
