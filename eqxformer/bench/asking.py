"""Questions asked in turn with the ceilings they are compared to, each in a process of its own.

`ask` gives the results one by one as they come, so that a person who does not want to wait for the
rest has what has been measured.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, Self

from eqxformer.bench.ceilings import commands
from eqxformer.bench.questions import QUESTIONS

Device = Literal["cpu", "gpu"]
Progress = Callable[[str, int], None]


class CandidateFailed(RuntimeError):
    """A candidate ended before it had answered; the message says why, as far as is known."""


class Candidate:
    """A process that repeats something whenever it is asked to, as `harness.serve` does."""

    def __init__(
        self, name: str, command: Sequence[str], *, device: Device | None, first: str = ""
    ) -> None:
        self._name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in `__exit__`)
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=_environment(device),
            start_new_session=True,  # Ctrl-C is for the one who asks
        )
        if first:
            self._write(first)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def facts(self) -> dict[str, Any]:
        """Waits until it is ready; what it says of itself. Raises `CandidateFailed`."""
        for line in self._process.stdout or ():
            word, _, rest = line.partition(" ")
            if word == "ready":
                return json.loads(rest)
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
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines() or ["it says nothing"]
        return CandidateFailed(f"`{self._name}` ended with exit code {code}: {lines[-1]}")


Ceiling = tuple[Candidate, dict[str, Any]]  # and what it says of itself


def _environment(device: Device | None) -> dict[str, str]:
    """JAX on the device that is asked for, and memory taken as it is needed: others run beside."""
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    if device == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    elif device == "gpu":
        environment.pop("JAX_PLATFORMS", None)
    return environment


def ask(
    questions: Sequence[str],
    setting: Mapping[str, Any],
    *,
    repetitions: int,
    device: Device | None = None,
    compared: bool = True,
    progress: Progress = lambda question, done: None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each question with what was found, as soon as it has been.

    Arguments:
        questions: of `QUESTIONS`.
        setting: `config` as a dictionary, `batch`, `seq` and `dtype`.
        repetitions: how often each is asked, two at the least.
        device: where JAX runs; its own choice if None.
        compared: whether ceilings are measured in turn with the questions.
        progress: called with a question and its repetitions so far, from 0 on.

    Raises `CandidateFailed`, and at Ctrl-C `KeyboardInterrupt`, after it has given what the
    question that was being asked comes to so far.
    """
    with ExitStack() as stack:
        ceilings: dict[str, Ceiling] = {}
        for question in questions:
            kind = QUESTIONS[question][1]
            progress(question, 0)
            first = json.dumps({**setting, "question": question, "device": device})
            command = ["-m", "eqxformer.bench.questions"]
            with Candidate(question, command, device=device, first=first) as candidate:
                facts = candidate.facts()
                if compared and kind not in ceilings:
                    ceilings[kind] = _ceiling(kind, setting["dtype"], device, stack)
                taken: list[float] = []
                most: list[float] = []
                whole = True
                try:
                    for done in range(repetitions):
                        progress(question, done + 1)
                        _ask_once(candidate, ceilings.get(kind), taken, most)
                except KeyboardInterrupt:
                    if len(taken) < 2:  # too few for a spread
                        raise
                    whole = False
            yield question, summary(question, facts, taken, most)
            if not whole:
                raise KeyboardInterrupt


def _ask_once(
    candidate: Candidate, ceiling: Ceiling | None, taken: list[float], most: list[float]
) -> None:
    """Adds the seconds of one repetition, and the ceiling's operations or bytes per second."""
    taken.append(candidate.seconds())
    if ceiling is not None:
        most.append(ceiling[1]["work"] / ceiling[0].seconds())


def _ceiling(kind: str, dtype: str, device: Device | None, stack: ExitStack) -> Ceiling:
    (command,) = commands((kind,), dtype=dtype).values()
    candidate = stack.enter_context(Candidate(f"ceiling: {kind}", command, device=device))
    return candidate, candidate.facts()


def summary(
    question: str, facts: Mapping[str, Any], taken: Sequence[float], most: Sequence[float]
) -> dict[str, Any]:
    """What a question's repetitions come to: seconds and quartiles of a part, and its shares.

    Arguments:
        facts: what the candidate says one repetition does.
        taken: seconds of the repetitions.
        most: the ceiling's operations or bytes per second, measured in turn with them.
    """
    unit, kind = QUESTIONS[question]
    low, median, high = statistics.quantiles(taken, n=4)
    parts = facts["parts"]
    found: dict[str, Any] = {
        "of": unit,
        "median": median / parts,
        "quartiles": [low / parts, high / parts],
        "repetitions": len(taken),
        "tokens_per_second": facts["tokens"] / median,
        "first_seconds": facts["first_seconds"],
        "peak_memory_bytes": facts["peak_memory_bytes"],
    }
    work = facts["flops" if kind == "product" else "read"]
    if work is not None:
        found["flops_per_second" if kind == "product" else "bytes_per_second"] = work / median
        if most:
            found["ceiling"] = statistics.median(most)
            found["share_of_ceiling"] = work / median / found["ceiling"]
    return {**found, "machine": facts["machine"]}
