"""What the benchmarks share: candidates in processes of their own, asked in turn, and results.

A candidate is a Python process that prints `ready` when it has warmed up and then, for every line
it reads, runs one repetition and prints its seconds. All candidates are asked once in a round, each
round in another order, so that a machine that speeds up or slows down does so for all of them. What
one leaves behind must not count for the next: there is a pause before each, in which the threads of
the one before go to sleep, and a quick repetition comes after one that is not timed, which has the
caches to itself.
"""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

PACKAGES = (
    *("jax", "jaxlib", "equinox", "optax", "numpy", "torch", "transformers", "flax", "dm-haiku"),
    *("eqx-zoo", "levanter", "marin-levanter"),
)
# Candidates share a GPU's memory, most of which JAX would otherwise take at its start.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
FLAGS = ("XLA_", "JAX_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "TORCH_", "LD_PRELOAD", "GLIBC_")


PAUSE, QUICK = 0.25, 1.0  # seconds


def share_device() -> None:
    """Lets this process share a GPU with candidates; to be called before JAX is used."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def needs(*packages: str) -> None:
    """The candidate's side: bows out, saying why, where one of these modules is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        print("absent", json.dumps(f"{' and '.join(missing)} not installed"), flush=True)
        raise SystemExit(0)


def serve(repeat: Callable[[], None], **facts: Any) -> None:
    """The candidate's side: warms up twice, says it is ready with some facts, then repeats."""

    def seconds() -> float:
        start = time.perf_counter()
        repeat()
        return time.perf_counter() - start

    first, last = seconds(), seconds()
    print("ready", json.dumps({"first_seconds": first, **facts}), flush=True)
    for _ in sys.stdin:
        if last < QUICK:
            repeat()
        last = seconds()
        print(last, flush=True)


def compare(
    candidates: Mapping[str, Sequence[str]],
    *,
    repetitions: int,
    check: Callable[[dict[str, dict[str, Any]]], None] = lambda facts: None,
) -> dict[str, dict[str, Any]]:
    """Medians, quartiles and facts of every candidate, whose command line is given by name.

    Those that are not installed are printed and left out. One that dies is a `RuntimeError`.
    `check` sees everybody's facts before anything is timed, and may raise.
    """
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        facts: dict[str, dict[str, Any]] = {}
        for name, command in candidates.items():  # one warms up at a time
            running[name] = _start(command)
            told = _ready(name, running[name])
            if told is not None:
                facts[name] = told
        check(facts)
        seconds: dict[str, list[float]] = {name: [] for name in facts}
        order, names = random.Random(0), list(facts)
        for _ in range(repetitions):
            order.shuffle(names)
            for name in names:
                time.sleep(PAUSE)
                seconds[name].append(_repeat(name, running[name]))
    finally:
        _end(running.values())
    return {name: {**facts[name], **_spread(seconds[name])} for name in facts}


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | os.environ,
    )


def _ready(name: str, process: subprocess.Popen[str]) -> dict[str, Any] | None:
    """A candidate's facts, once it is ready; None if it is not installed."""
    for line in process.stdout or ():
        if line.startswith("ready "):
            return json.loads(line.removeprefix("ready "))
        if line.startswith("absent "):
            print(f"{name} is left out: {json.loads(line.removeprefix('absent '))}.", flush=True)
            return None
    raise RuntimeError(f"The candidate {name} ended before it was ready.")


def _repeat(name: str, process: subprocess.Popen[str]) -> float:
    """The seconds of one repetition."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError(f"The candidate {name} has no pipes.")
    try:
        process.stdin.write("go\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it has died, so there is nothing to read either
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"The candidate {name} ended in the middle, with {process.wait()}.")
    return float(line)


def _end(processes: Iterable[subprocess.Popen[str]]) -> None:
    """Lets candidates go: the end of the input is the end of the work."""
    for process in processes:
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _spread(seconds: list[float]) -> dict[str, Any]:
    low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return {"median": median, "quartiles": [low, high], "repetitions": len(seconds)}


def machine() -> dict[str, Any]:
    """The hardware and the versions that results belong to."""
    import equinox
    import jax
    import numpy

    share_device()
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "equinox": equinox.__version__,
        "numpy": numpy.__version__,
        "versions": versions(),
        "flags": flags(),
        "command": sys.argv,
    }


def versions() -> dict[str, str]:
    """The version of each of the packages that is installed; nothing is imported."""
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def flags() -> dict[str, str]:
    """The environment variables of candidates that may change how fast they are."""
    environment = ENVIRONMENT | os.environ
    return {name: environment[name] for name in sorted(environment) if name.startswith(FLAGS)}


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def write(script: str, name: str, results: Any) -> pathlib.Path:
    """Saves results as JSON in `results/` beside the script, named after question and platform."""
    facts = machine()
    folder = pathlib.Path(script).parent / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{facts['platform']}.json"
    path.write_text(json.dumps({"machine": facts, "results": results}, indent=2) + "\n")
    return path
