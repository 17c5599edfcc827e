"""The page of the command line, made of what `--help` says."""

import html
import inspect
import re

import click

from eqxformer.cli.commands import COMMANDS, eqxformer

HEAD = """# Command line

`pip install '.[train]'` in a checkout brings the command `eqxformer`. This page is what `--help`
says. Exit codes: 0 is success, 2 a mistake in what was asked for, 1 what was begun and could not be
ended, 130 and 143 the end by Ctrl-C and SIGTERM.

"""


def pages() -> dict[str, str]:
    """The page by its path in the site."""
    group = click.Context(eqxformer, info_name="eqxformer")
    parts = [HEAD, "```text\n", eqxformer.get_help(group), "\n```\n"]
    for name in COMMANDS:
        command = eqxformer.get_command(group, name)
        assert command is not None
        parts.append(section(name, command, group))
    return {"reference/commands.md": "".join(parts)}


def section(name: str, command: click.Command, group: click.Context) -> str:
    """A command: what it does, how it is called, its arguments and options."""
    context = click.Context(command, parent=group, info_name=name)
    usage = " ".join([f"eqxformer {name}", *command.collect_usage_pieces(context)])
    first, *rest = re.split(r"\n\n+", inspect.cleandoc(command.help or ""))
    lines = [f"\n## {name}\n", first, "", f"```text\n{usage}\n```", ""]
    lines += [paragraph(each) + "\n" for each in rest]
    options = (p for p in command.params if isinstance(p, click.Option))
    records = [record for option in options if (record := option.get_help_record(context))]
    if records:
        lines += ["| option | what it does |", "|---|---|", *(row(*record) for record in records)]
    if command.epilog:
        lines += ["", "```sh", examples(command.epilog), "```"]
    return "\n".join(lines) + "\n"


def paragraph(text: str) -> str:
    """A paragraph of a command's help; one that click leaves as it is written stays so here."""
    return f"```text\n{text[2:].rstrip()}\n```" if text.startswith("\b\n") else text


def row(option: str, said: str) -> str:
    """A line of a table."""
    option, said = (html.escape(each).replace("|", "&#124;") for each in (option, said))
    return f"| <code>{option}</code> | {said} |"


def examples(epilog: str) -> str:
    """The examples below a command's help, as lines of a shell."""
    lines = [line.strip() for line in epilog.replace("\b", "").strip().splitlines()]
    return "\n".join(line for line in lines if line and line != "Examples:")
