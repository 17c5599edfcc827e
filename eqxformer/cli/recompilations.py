"""`eqxformer recompilations`: runs a script or a command, and tells what is compiled and why."""

import contextlib
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from eqxformer.cli.errors import Mistake
from eqxformer.inspect.recompilations import Recompilation, recompilations

_EXAMPLES = """\b
Examples:
  eqxformer recompilations train text --steps 5
  eqxformer recompilations generate runs/text-20250101-120000 --prompt "What is"
  eqxformer recompilations train.py
"""


@click.command(
    "recompilations",
    epilog=_EXAMPLES,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("command", metavar="SCRIPT|COMMAND [ARGUMENTS]...", nargs=-1, required=True)
def recompiled(command: tuple[str, ...]) -> int | None:
    """Run a Python script, or a command of eqxformer, and tell what is compiled, and why.

    Every function under `jax.jit` or `eqx.filter_jit` that is compiled is a line on the standard
    error, when it happens: where it is compiled again, with the arguments that are not as they
    were. The script or command gets all arguments behind its name, and its exit code is given.
    """
    first, *arguments = command
    with _told():
        if first.endswith(".py"):
            return _run_script(Path(first), arguments)
        from eqxformer.cli.commands import COMMANDS, eqxformer

        if first not in COMMANDS:
            raise Mistake(
                f"`{first}` is neither a Python script, whose name ends in .py, nor one of the "
                f"commands {', '.join(COMMANDS)}."
            )
        return eqxformer.main(list(command), prog_name="eqxformer", standalone_mode=False)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """The time in which compilations are told, and at its end how many there were."""
    with recompilations(lambda each: click.echo(str(each), err=True)) as log:
        try:
            yield
        finally:
            if log:
                click.echo(_summary(log), err=True)


def _summary(log: list[Recompilation]) -> str:
    again = sum(each.number > 1 for each in log)
    seconds = sum(each.seconds for each in log)
    return f"Compiled: {len(log) - again} functions, and {again} times one again; {seconds:.1f} s."


def _run_script(path: Path, arguments: list[str]) -> int | None:
    """Runs it as `python path arguments` does."""
    if not path.is_file():
        raise Mistake(f"There is no file {path}.")
    before = sys.argv, sys.path[:]
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            click.echo(end.code, err=True)
            return 1
        return end.code
    finally:
        sys.argv, sys.path[:] = before
    return None
