"""Where `website.check_commands` runs commands: a directory per page, a copy of the checkout.

A command finds there what those before it on its page have made, and what it presupposes, which
`website/given.py` makes once for all pages.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from typing import NamedTuple

from website.given import GIVEN, Given
from website.shell import ROOT
from website.stand_ins import COMPLAINTS

CHECKOUT = ("README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "mkdocs.yml")
CHECKOUT += ("eqxformer", "benchmarks", "docs", "website")
DATED = re.compile(r"runs/(?P<recipe>\w+)-\d{8}-\d{6}")
LONGEST = 900  # seconds of a command
TYPED = "hello world\n"  # what a command reads that asks for something


class Ran(NamedTuple):
    """How a command ended: its exit code, how long it took, and what it printed."""

    code: int
    seconds: float
    printed: str

    @property
    def well(self) -> bool:
        """Whether it did what a reader expects of it."""
        return self.code == 0 and not any(re.search(each, self.printed) for each in COMPLAINTS)


class Workshop:
    """All places in a folder, and a shelf of what is given."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        slurm = folder / "bin" / "srun"
        slurm.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/website/srun.py" "$@"\n')
        slurm.chmod(0o755)
        for name in ("XLA_FLAGS", "EQXFORMER_CHECKS"):
            os.environ.pop(name, None)
        scripts = [str(slurm.parent), sysconfig.get_path("scripts"), os.environ["PATH"]]
        os.environ["PATH"] = os.pathsep.join(scripts)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def place(self, page: str) -> pathlib.Path:
        """The directory of a page."""
        place = self.folder / re.sub(r"\W+", "-", page)
        if not place.exists():
            place.mkdir()
            for name in CHECKOUT:
                copy(ROOT / name, place / name)
        return place

    def prepare(self, text: str, place: pathlib.Path) -> None:
        """Puts into a place what a command presupposes and none before it has made.

        A run to go on with is made to look as if it had been killed before its end.
        """
        for given in GIVEN:
            for name in re.findall(given.pattern, text):
                if not (place / name).exists() and not makes(text, name):
                    self.give(given, name, place)
        if "--resume" in text:
            (out,) = set(re.findall(r"--out (\S+)", text))
            forget_newest(place / out / "checkpoints")

    def give(self, given: Given, name: str, place: pathlib.Path) -> None:
        """The newest run of the page's own, where a name is that of a run; else off the shelf."""
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        own = own_run(name, place)
        if own is not None:
            (place / name).symlink_to(own.name)
            return
        shelf = self.folder / "shelf" / name.replace("/", "-")
        if not shelf.exists():
            shelf.mkdir(parents=True)
            given.make(shelf / pathlib.PurePath(name).name)
        for each in shelf.iterdir():
            copy(each, (place / name).with_name(each.name))


def makes(text: str, name: str) -> bool:
    """Whether a command makes the directory of this name, rather than going on with it."""
    return f"--out {name}" in text and "--resume" not in text


def own_run(name: str, place: pathlib.Path) -> pathlib.Path | None:
    """The newest run of a recipe that was made in a place, for a name with a date and a time."""
    dated = DATED.fullmatch(name)
    if dated is None:
        return None
    runs = (each for each in place.glob(f"runs/{dated['recipe']}-*") if not each.is_symlink())
    return max(runs, key=lambda each: each.stat().st_mtime, default=None)


def forget_newest(checkpoints: pathlib.Path) -> None:
    """Removes the newest of several checkpoints, as if the run had been killed before it."""
    steps = sorted(int(each.name) for each in checkpoints.glob("*") if each.name.isdigit())
    if len(steps) > 1:
        shutil.rmtree(checkpoints / str(steps[-1]))


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a file or a directory."""
    if source.is_dir():
        caches = shutil.ignore_patterns("__pycache__", "site", "runs")
        shutil.copytree(source, target, ignore=caches, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


def run(text: str, place: pathlib.Path, longest: float = LONGEST) -> Ran:
    """Runs a command in a place; one that takes too long is killed, with all that it started."""
    begun = time.monotonic()
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            ["bash", "-c", text],
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.communicate(TYPED.encode(), timeout=longest)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            printed.write(f"\nNot done after {longest} seconds.\n".encode())
        printed.seek(0)
        said = printed.read().decode("utf-8", "replace")
    return Ran(process.returncode, time.monotonic() - begun, said)
