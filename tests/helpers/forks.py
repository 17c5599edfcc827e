"""Processes that fork from one that has imported all they need, which saves most of their start.

python -m tests.helpers.forks MODULE...
"""

import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jax._src import compiler
from jax._src.interpreters import mlir

ROOT = Path(__file__).parents[2]


class Nursery:
    """A process that has imported these modules and done nothing else, until it is closed.

    From a fork on, each of its children is a process like any other. JAX reads most of its
    settings when it is imported: they go here, what children do not share goes to `start`.
    """

    def __init__(self, place: Path, *modules: str, **environment: str):
        self.place = place
        self._count = 0
        self._mother = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.forks", *modules],
            cwd=ROOT,
            # A thread of a library would not come along.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, module: str, *arguments: object, **environment: str) -> "Child":
        """A child that does what `python -m module arguments` does."""
        self._count += 1
        ends = [str(self.place / f"{end}{self._count}.txt") for end in ("out", "err")]
        pid = self.ask("start", [module, *map(str, arguments)], environment, ends)
        return Child(self, pid, *map(Path, ends))

    def ask(self, *order: object) -> Any:
        """What the process answers to this."""
        print(json.dumps(order), file=self._mother.stdin, flush=True)
        return json.loads(self._mother.stdout.readline())

    def close(self) -> None:
        """Ends it."""
        self._mother.communicate()


class Child:
    """A process of a nursery; used as a `subprocess.Popen` whose ends are pipes."""

    def __init__(self, nursery: Nursery, pid: int, out: Path, err: Path):
        self.pid, self.returncode = pid, None
        self._nursery, self._ends = nursery, (out, err)

    def poll(self) -> int | None:
        """The exit code, once there is one."""
        if self.returncode is None:
            self.returncode = self._nursery.ask("poll", self.pid)
        return self.returncode

    def communicate(self, timeout: float = 300.0) -> tuple[str, str]:
        """What it has written to both ends, after its own."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(str(self._ends), timeout)
            time.sleep(0.01)
        out, err = (end.read_text() for end in self._ends)
        return out, err

    def send_signal(self, number: int) -> None:
        """Sends it, where the process is still there."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.send_signal(signal.SIGKILL)


def _forked() -> list[Any]:
    """Serves until its orders end; in a child, returns what this is to do."""
    for line in sys.stdin:
        kind, *details = json.loads(line)
        if kind == "poll":
            pid, status = os.waitpid(details[0], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                return details
        print(json.dumps(answer), flush=True)
    os._exit(0)  # at once: nothing is left to be done


def _become(arguments: list[str], environment: dict[str, str], ends: list[str]) -> None:
    os.environ.update(environment)
    for number, end in enumerate((os.devnull, *ends)):
        file = os.open(end, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def _compile_quickly() -> None:
    """Two of the settings of conftest.py; and of several processes, each keeps what it compiles.

    JAX lets only the first do so, and on CPU the others do not find what that one keeps.
    """
    gc.set_threshold(100_000, 50, 100)
    if version("jaxlib").startswith("0.10."):
        mlir.make_ir_context = functools.cache(mlir.make_ir_context)
    compiler.distributed = SimpleNamespace(global_state=SimpleNamespace(process_id=0, client=None))


if __name__ == "__main__":
    _compile_quickly()
    for name in sys.argv[1:]:
        importlib.import_module(name)
    _become(*_forked())
