"""The commands that the pages and the help texts tell people to type.

A command is what a shell runs at once: a line of a fence of `sh`, `bash` or `console`, with those
that it goes on in; what stands on the two sides of `&&` are two. Lines that only set the scene,
`export`s and what is sent to the background, belong to the command after them. In prose, a code
span is a command where it has an argument or names a script: `eqxformer train mlm`, but not
`eqxformer train`.
"""

import pathlib
import re
import shlex
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

import click

from eqxformer.cli.commands import eqxformer
from website.commands import examples

ROOT = pathlib.Path(__file__).parent.parent
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```",
    flags=re.DOTALL | re.MULTILINE,
)
SAID = re.compile(r"\n\n```(?:text)?\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
SHELLS = ("sh", "bash", "console")
SPAN = re.compile(
    r"(?<!`)`((?:eqxformer\s+[a-z]+\s+|python\s+|pip\s+install\s+|pytest\s+)[^`]+)`(?!`)"
)


class Command(NamedTuple):
    """A command: the page that has it, the line there on which it begins, and its text.

    `said` is what the page says that it prints, perhaps among other things: a fence of no language
    right behind that of the command.
    """

    page: str
    line: int
    text: str
    said: str = ""


def pages() -> dict[str, str]:
    """The README, the pages, and the examples of every help text, by name."""
    first, written = ROOT / "README.md", sorted((ROOT / "docs").rglob("*.md"))
    found = {
        str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in (first, *written)
    }
    return found | dict(helps(eqxformer, click.Context(eqxformer, info_name="eqxformer")))


def helps(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """The examples below a command's help and those of its subcommands, each as a page."""
    if command.epilog:
        yield f"{context.command_path} --help", f"```sh\n{examples(command.epilog)}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            part = command.get_command(context, name)
            assert part is not None
            yield from helps(part, click.Context(part, parent=context, info_name=name))


def commands(found: dict[str, str] | None = None) -> list[Command]:
    """All commands of pages, in their order; one in prose only where it stands nowhere else."""
    found = pages() if found is None else found
    shown = {page: list(fenced(page, text)) for page, text in found.items()}
    seen = {each.text for page in shown.values() for each in page}
    for page, text in found.items():
        for each in prose(page, text):
            if each.text not in seen:
                shown[page].append(each)
                seen.add(each.text)
    return [each for page in shown.values() for each in sorted(page, key=line_of)]


def line_of(command: Command) -> int:
    """Where a command stands; those of one line keep their order."""
    return command.line


def fenced(page: str, text: str) -> Iterator[Command]:
    """The commands in the fences of a page."""
    for fence in FENCE.finditer(text):
        if fence["language"] in SHELLS:
            line = text.count("\n", 0, fence.start("body")) + 1
            body = textwrap.dedent(fence["body"])
            found = list(lines(body, prompted=fence["language"] == "console"))
            behind = SAID.match(text, fence.end())
            for place, (number, each) in enumerate(found, 1):
                said = behind[1] if behind is not None and place == len(found) else ""
                yield Command(page, line + number, each, said)


def lines(body: str, prompted: bool = False) -> Iterator[tuple[int, str]]:
    """What a shell runs at once of some lines, and the number of its first line.

    Example:
        >>> list(lines("first &  # beside\\nsecond \\\\\\n  --on\\nthird && fourth\\n"))
        [(0, 'first &\\nsecond --on'), (3, 'third'), (3, 'fourth')]
        >>> list(lines("export A=1\\none\\ntwo\\n"))
        [(0, 'export A=1\\none'), (2, 'export A=1\\ntwo')]
    """
    kept: list[str] = []  # exports hold for all that follows
    before: list[str] = []
    begun = None
    rows = enumerate(body.splitlines())
    for number, row in rows:
        if prompted and not row.startswith("$ "):
            continue
        row = row.removeprefix("$ ")
        while row.endswith("\\"):
            row = row[:-1] + next(rows)[1].strip()
        row = uncommented(row)
        if not row:
            continue
        begun = number if begun is None else begun
        if row.startswith("export "):
            kept.append(row)
        elif row.endswith("&"):
            before.append(row)
        else:
            for part in row.split(" && "):
                yield begun, "\n".join([*kept, *before, part.strip()])
            before, begun = [], None


def uncommented(row: str) -> str:
    """A line without the comment at its end.

    Example:
        >>> uncommented("echo '# one' two  # three")
        "echo '# one' two"
    """
    for mark in re.finditer(r"(?:^|\s)#", row):
        try:
            shlex.split(row[: mark.start()])
        except ValueError:  # the mark stands between quotes
            continue
        return row[: mark.start()].strip()
    return row.strip()


def prose(page: str, text: str) -> Iterator[Command]:
    """The commands in the code spans of a page."""
    outside = FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    for span in SPAN.finditer(outside):
        line = outside.count("\n", 0, span.start()) + 1
        for part in " ".join(span[1].split()).split(" && "):
            yield Command(page, line, part)
