"""What the benchmarks share: candidates in processes of their own, asked in turn, and results.

A candidate is a Python process that prints `ready` when it has warmed up and then, for every line
it reads, runs one repetition and prints its seconds. All candidates are asked once in a round, each
round in another order, so that a machine that speeds up or slows down does so for all of them. What
one leaves behind must not count for the next: there is a pause before each, in which the threads of
the one before go to sleep, and a quick repetition comes after one that is not timed, which has the
caches to itself; on a GPU, whose clock falls in a pause, after as many as let it rise.
"""

import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self, TypeVar

PACKAGES = (
    *("jax", "jaxlib", "equinox", "optax", "numpy", "torch", "transformers", "flax", "dm-haiku"),
    *("eqx-zoo", "levanter", "marin-levanter"),
)
# Candidates share a GPU's memory, most of which JAX would otherwise take at its start.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
PLATFORM = "EQXFORMER_BENCH_PLATFORM"  # where candidates compute, as the asker's JAX calls it
FLAGS = ("XLA_", "JAX_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "TORCH_", "LD_PRELOAD", "GLIBC_")


PAUSE, QUICK, AWAKE = 0.25, 1.0, 0.2  # seconds; a GPU's clock has risen after the last
LEAST = 0.5  # seconds of a repetition that makes several calls
Told = TypeVar("Told")


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


@functools.cache
def jax_platform() -> str:
    """Where JAX computes: cpu, gpu or tpu. Another process finds out, so as to leave it free."""
    command = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    environment = ENVIRONMENT | os.environ
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def on_cpu() -> bool:
    """The candidate's side: whether it computes on the CPU, as its asker's JAX does.

    One that nobody tells asks its own JAX, which it then has.
    """
    told, jax = os.environ.get(PLATFORM), sys.modules.get("jax")
    if told is None and jax is not None:
        told = jax.default_backend()
    return told in (None, "cpu")


def torch_device() -> str:
    """The candidate's side: where PyTorch computes, which is where the asker's JAX does.

    Bows out where that is a GPU that PyTorch does not see: nothing is compared across devices.
    """
    if on_cpu():
        return "cpu"
    torch: Any = importlib.import_module("torch")
    if not torch.cuda.is_available():
        print("absent", json.dumps("PyTorch sees no GPU"), flush=True)
        raise SystemExit(0)
    return "cuda"


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
            _warm_up(repeat)
        last = seconds()
        print(last, flush=True)


def repeated(
    call: Callable[[], Told],
    *,
    least: float = LEAST,
    wait: Callable[[Told], object] = lambda out: out,
) -> tuple[Callable[[], None], int]:
    """A repetition that takes `least` seconds or more, and how many calls it makes.

    One short call after a pause is a cold one, and what else the machine does in that moment is
    all of its time. `wait` waits for what the last of the calls gives.

    Example:
        >>> import time
        >>> from eqxformer.bench.harness import repeated
        >>> repeat, calls = repeated(lambda: time.sleep(0.004), least=0.02)
        >>> 1 < calls <= 5
        True
    """
    wait(call())
    start = time.perf_counter()
    wait(call())
    calls = max(1, math.ceil(least / (time.perf_counter() - start)))

    def repeat() -> None:
        for _ in range(calls - 1):
            call()
        wait(call())

    return repeat, calls


def _warm_up(repeat: Callable[[], None]) -> None:
    """Repeats untimed: once on a CPU, for a while on a GPU."""
    end = time.perf_counter() + (0.0 if on_cpu() else AWAKE)
    repeat()
    while time.perf_counter() < end:
        repeat()


class CandidateFailed(RuntimeError):
    """A candidate ended before it had answered; the message says why, as far as is known."""


class Candidate:
    """The asker's side: a process that repeats something whenever it is asked to, by `serve`.

    Arguments:
        name: what errors call it.
        command: the arguments of Python.
        first: a line that it reads before anything else.
        environment: variables beside those of this process.
        quiet: whether what it writes to its error stream is kept for the message of an error, and
            not shown.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        first: str = "",
        environment: Mapping[str, str | None] | None = None,
        quiet: bool = False,
    ) -> None:
        self._name = name
        self._errors = tempfile.TemporaryFile("w+") if quiet else None  # noqa: SIM115
        variables = ENVIRONMENT | os.environ | dict(environment or {})
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={name: value for name, value in variables.items() if value is not None},
            start_new_session=True,  # Ctrl-C is for the one who asks
        )
        if first:
            self._write(first)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        if kind is not None and not issubclass(kind, Exception):  # nobody waits after Ctrl-C
            self.kill()
        try:
            self._process.communicate(timeout=20)  # the end of the input is the end of the work
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.communicate()
        if self._errors is not None:
            self._errors.close()

    def kill(self) -> None:
        """Ends it in the middle of what it does."""
        self._process.kill()

    def facts(self) -> dict[str, Any] | None:
        """Waits until it is ready; what it says of itself, or None if it is not installed.

        Raises `CandidateFailed`.
        """
        for line in self._process.stdout or ():
            word, _, rest = line.partition(" ")
            if word == "ready":
                return json.loads(rest)
            if word == "absent":
                print(f"{self._name} is left out: {json.loads(rest)}.", flush=True)
                return None
            if word == "failed":
                raise CandidateFailed(f"`{self._name}` cannot be measured: {json.loads(rest)}")
        raise self._ended()

    def seconds(self) -> float:
        """One repetition. Raises `CandidateFailed`."""
        self._write("go")
        line = self._process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        if not line:
            raise self._ended()
        return float(line)

    def _write(self, line: str) -> None:
        try:
            self._process.stdin.write(f"{line}\n")  # pyright: ignore[reportOptionalMemberAccess]
            self._process.stdin.flush()  # pyright: ignore[reportOptionalMemberAccess]
        except BrokenPipeError:
            raise self._ended() from None

    def _ended(self) -> CandidateFailed:
        code = self._process.wait()
        if code < 0:
            return CandidateFailed(
                f"`{self._name}` was ended by signal {-code}, probably for want of memory; "
                "make the model, `batch` or `seq` smaller."
            )
        said = f"`{self._name}` ended with exit code {code}"
        if self._errors is None:
            return CandidateFailed(f"{said}; what it said stands above.")
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines() or ["it says nothing"]
        return CandidateFailed(f"{said}: {lines[-1]}")


def compare(
    candidates: Mapping[str, Sequence[str]],
    *,
    repetitions: int,
    check: Callable[[dict[str, dict[str, Any]]], None] = lambda facts: None,
    may_fail: Collection[str] = (),
) -> dict[str, dict[str, Any]]:
    """Medians, quartiles and facts of every candidate, whose command line is given by name.

    Where a candidate says that a repetition makes so many `calls`, times are those of a call.
    Those that are not installed are printed and left out, and so are those of `may_fail` that die:
    the others' results are worth having where a peer runs out of memory or cannot compile. Any
    other that dies is a `CandidateFailed`, as is that none is left. `check` sees everybody's facts
    before anything is timed, and may raise.
    """
    where = {PLATFORM: jax_platform()}
    with ExitStack() as stack:
        running: dict[str, Candidate] = {}
        facts: dict[str, dict[str, Any]] = {}
        for name, command in candidates.items():  # one warms up at a time
            candidate = stack.enter_context(Candidate(name, command, environment=where))
            told = _unless_failed(name, candidate.facts, may_fail)
            if told is not None:
                running[name], facts[name] = candidate, told
        if not facts:
            raise CandidateFailed(f"None of {', '.join(candidates)} can be measured here.")
        check(facts)
        seconds: dict[str, list[float]] = {name: [] for name in facts}
        order, names = random.Random(0), list(facts)
        for _ in range(repetitions):
            order.shuffle(names)
            for name in list(names):
                time.sleep(PAUSE)
                taken = _unless_failed(name, running[name].seconds, may_fail)
                if taken is None:
                    names.remove(name)
                else:
                    seconds[name].append(taken)
        if not names:
            raise CandidateFailed(f"None of {', '.join(candidates)} can be measured here.")
    return {
        name: {**facts[name], **_spread(seconds[name], facts[name].get("calls", 1))}
        for name in facts
        if name in names
    }


def _unless_failed(
    name: str, told: Callable[[], Told | None], may_fail: Collection[str]
) -> Told | None:
    """What a candidate tells; None, once that is printed, from one that dies and may do so."""
    try:
        return told()
    except CandidateFailed as error:
        if name not in may_fail:
            raise
        print(f"{name} is left out: {error}", flush=True)
        return None


def _spread(seconds: list[float], calls: int) -> dict[str, Any]:
    each = [whole / calls for whole in seconds]
    several = each if len(each) > 1 else each * 2
    low, median, high = statistics.quantiles(several, n=4, method="inclusive")
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
