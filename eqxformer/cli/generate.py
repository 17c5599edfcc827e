"""`eqxformer generate`: what a trained model answers to a prompt."""

from pathlib import Path

import click

from eqxformer.cli.errors import explained
from eqxformer.training.experiment import Experiment, Recipe, Request
from eqxformer.training.recipes import recipe
from eqxformer.training.run_directory import RUN, RunDirectory

_EXAMPLES = """\b
Examples:
  eqxformer generate runs/text-20250101-120000 --prompt "The "
  eqxformer generate runs/rot13-20250101-120000 --prompt "hey there"
"""


@click.command(epilog=_EXAMPLES)
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="What the model goes on from, or translates.")
@click.option("--max-new-tokens", type=int, default=400, show_default=True, help="How much more.")
@click.option(
    "--temperature", type=float, default=0.8, show_default=True, help="0: always the likeliest."
)
@click.option("--top-k", type=int, help="Choose among so many of the likeliest only.")
@click.option("--seed", type=int, default=0, show_default=True, help="For another answer.")
def generate(
    run: Path,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> None:
    """Ask the model in the run directory RUN to go on from a prompt."""
    with explained():
        request = Request(prompt, max_new_tokens, temperature, top_k, seed)
        request.check()
        directory = RunDirectory.open(run)
        chosen, experiment = _read(directory)
        answer = chosen.respond(directory.load(), directory.tokenizer(), experiment, request)
    click.echo(answer)


def _read(directory: RunDirectory) -> tuple[Recipe, Experiment]:
    """What `run.json` says was trained, and how."""
    about = directory.about()
    name, values = str(about.get("recipe")), about.get("experiment")
    chosen = recipe(name)
    if not isinstance(values, dict):
        raise ValueError(f"`{directory.path / RUN}` has no experiment; the run is not complete.")
    return chosen, Experiment.from_dict(values)
