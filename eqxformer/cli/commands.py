"""The table of commands, each imported when it is used, and what becomes of their errors."""

import importlib

import click

from eqxformer.__about__ import __version__

# A command's name, the module and attribute that define it, and its line in the help.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("eqxformer.cli.train:train", "Train a model; with no arguments, on text, at once."),
    "generate": ("eqxformer.cli.generate:generate", "Let a model go on from a prompt, or talk."),
    "score": ("eqxformer.cli.score:score", "See how likely a model finds a text."),
    "info": ("eqxformer.cli.info:info", "See what a checkpoint or a preset is, and what it needs."),
    "inspect": ("eqxformer.cli.inspect:inspect", "See what the compiler makes of a model."),
    "recompilations": (
        "eqxformer.cli.recompilations:recompiled",
        "See what a script or a command compiles, and why again.",
    ),
    "draw": ("eqxformer.cli.draw:draw", "Draw blocks, attention, masks, positions or losses."),
    "convert": ("eqxformer.cli.convert:convert", "Write a checkpoint in another type or format."),
    "bench": ("eqxformer.cli.bench:bench", "See how fast this machine runs a model."),
    "tour": ("eqxformer.cli.tour:tour", "See every component with its formula and its shapes."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="eqxformer")
@click.pass_context
def eqxformer(context: click.Context) -> None:
    """Transformers as Equinox modules: train one, ask it, look into it.

    Begin with `eqxformer train`.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def run(arguments: list[str]) -> int:
    """Runs a command; every error that a person can cure is one line. Returns the exit code."""
    try:
        result = eqxformer.main(arguments, prog_name="eqxformer", standalone_mode=False)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "eqxformer"
        _explain(f"{error.format_message().rstrip('.')}; see {command} --help.")
        return error.exit_code
    except click.ClickException as error:
        _explain(error.format_message())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _explain("interrupted.")
        return 130
    return result if isinstance(result, int) else 0


def _explain(message: str) -> None:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
