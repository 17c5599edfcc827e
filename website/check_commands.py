"""Runs the commands of the README, of the pages and of the help texts, page by page.

    python -m website.check_commands                       # all of them; before a release
    python -m website.check_commands --only how-to/train   # of pages with this in their names
    python -m website.check_commands --list                # what would be run, and what instead

What is run otherwise than it is written, or not at all, stands in `website/stand_ins.py` with the
reason; what a page presupposes is made by `website/given.py`. Exit code 1 where a command fails or
does not print what the page says, or where an entry of these files serves no command.
"""

import argparse
import itertools
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator

from website import workshop
from website.shell import Command, commands
from website.stand_ins import changed, idle, reason_not_to_run
from website.workshop import Workshop

SHOWN = 25  # lines of the output of one that fails


def main() -> int:
    """Runs what the command line asks for; the exit code."""
    options = arguments()
    found = commands()
    wrong = [f"No command is like {each}: take it out." for each in idle(found)]
    asked = options.only or [""]
    wanted = [each for each in found if any(name in each.page for name in asked)]
    if not wanted:
        wrong.append(f"No page has a name like {' or '.join(asked)}, and a command.")
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    if options.list:
        print(*listed(wanted), sep="\n")
    elif wanted:
        wrong += checked(wanted)
    return 1 if wrong else 0


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="website.check_commands", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", action="append", metavar="PAGE", help="may be given twice")
    parser.add_argument("--list", action="store_true", help="run nothing")
    return parser.parse_args()


def listed(wanted: Iterable[Command]) -> Iterator[str]:
    """What becomes of every command."""
    for page, group in itertools.groupby(wanted, key=lambda each: each.page):
        yield page
        for each in group:
            reason = reason_not_to_run(each.text)
            yield f"  {each.line:4}  {as_run(each.text)}" + (f"  [{reason}]" if reason else "")


def checked(wanted: list[Command]) -> list[str]:
    """Runs commands and prints how they ended; those that failed."""
    begun, failed, left = time.monotonic(), [], []
    with tempfile.TemporaryDirectory(prefix="commands-") as folder:
        places = Workshop(pathlib.Path(folder))
        for page, group in itertools.groupby(wanted, key=lambda each: each.page):
            print(f"\n{page}", flush=True)
            for each in group:
                reason = reason_not_to_run(each.text)
                if reason is not None:
                    left.append(each)
                    print(f"        not run  {each.text}\n                 {reason}", flush=True)
                elif not tried(each, places):
                    failed.append(f"{page}:{each.line}: {each.text}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"\n{len(wanted) - len(left)} commands in {time.monotonic() - begun:.0f} s, "
        f"{used.ru_utime + used.ru_stime:.0f} s of CPU; {len(left)} not run; {len(failed)} failed.",
        *failed,
        sep="\n",
    )
    return failed


def tried(command: Command, places: Workshop) -> bool:
    """Runs a command, prints how it ended, and says whether that is as the page has it."""
    place = places.place(command.page)
    places.prepare(command.text, place)
    ran = workshop.run(changed(command.text), place)
    well = ran.well and command.said in ran.printed
    print(f"{ran.seconds:7.1f} s  {'ok' if well else 'FAILED':6} {as_run(command.text)}")
    if not well:
        print(*(f"          | {line}" for line in ran.printed.splitlines()[-SHOWN:]), sep="\n")
    if ran.well and not well:
        print("          The page says that it prints:")
        print(*(f"          | {line}" for line in command.said.splitlines()), sep="\n")
    sys.stdout.flush()
    return well


def as_run(text: str) -> str:
    """A command, and below it what is run instead, where that is another."""
    instead = changed(text) if reason_not_to_run(text) is None else text
    lines = text if instead == text else f"{text}\nas: {instead}"
    return lines.replace("\n", "\n" + " " * 17)


if __name__ == "__main__":
    sys.exit(main())
