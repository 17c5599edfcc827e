"""What the benchmarks share: candidates in processes of their own, asked in turn, and results.

A candidate is a Python process that prints `ready` when it has warmed up and then, for every line
it reads, runs one repetition and prints its seconds. Repetitions of all candidates alternate, so
that a machine that speeds up or slows down does so for all of them, and no thread pool is shared.
"""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def serve(repeat: Callable[[], None], **facts: Any) -> None:
    """The candidate's side: warms up twice, says it is ready with some facts, then repeats."""
    start = time.perf_counter()
    repeat()
    first = time.perf_counter() - start
    repeat()
    print("ready", json.dumps({"first_seconds": first, **facts}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        repeat()
        print(time.perf_counter() - start, flush=True)


def compare(
    candidates: Mapping[str, Sequence[str]], *, repetitions: int
) -> dict[str, dict[str, Any]]:
    """Medians, quartiles and facts of every candidate, whose command line is given by name."""
    running = {name: _start(command) for name, command in candidates.items()}
    facts = {name: _ready(name, process) for name, process in running.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repetitions):
        for name, process in running.items():
            process.stdin.write("go\n")  # pyright: ignore[reportOptionalMemberAccess]
            process.stdin.flush()  # pyright: ignore[reportOptionalMemberAccess]
            seconds[name].append(float(process.stdout.readline()))  # pyright: ignore[reportOptionalMemberAccess]
    for process in running.values():
        process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
        process.wait()
    return {name: {**facts[name], **_spread(seconds[name])} for name in candidates}


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _ready(name: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    for line in process.stdout or ():
        if line.startswith("ready "):
            return json.loads(line.removeprefix("ready "))
    raise RuntimeError(f"The candidate {name} ended before it was ready.")


def _spread(seconds: list[float]) -> dict[str, Any]:
    low, median, high = statistics.quantiles(seconds, n=4)
    return {"median": median, "quartiles": [low, high], "repetitions": len(seconds)}


def machine() -> dict[str, Any]:
    """The hardware and the versions that results belong to."""
    import equinox
    import jax
    import numpy

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
    }


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
