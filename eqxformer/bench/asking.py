"""Questions asked in turn with the ceilings they are compared to, each in a process of its own.

`ask` gives the results one by one as they come, so that a person who does not want to wait for the
rest has what has been measured.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

from eqxformer.bench.ceilings import commands
from eqxformer.bench.harness import Candidate
from eqxformer.bench.questions import QUESTIONS

Device = Literal["cpu", "gpu"]
Progress = Callable[[str, int], None]


Ceiling = tuple[Candidate, dict[str, Any]]  # and what it says of itself


# Which devices JAX may use; None leaves the choice to JAX.
_PLATFORMS: dict[Device | None, dict[str, str | None]] = {
    None: {},
    "cpu": {"JAX_PLATFORMS": "cpu"},
    "gpu": {"JAX_PLATFORMS": None},
}


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
            with Candidate(
                question, command, first=first, environment=_PLATFORMS[device], quiet=True
            ) as candidate:
                facts = candidate.facts() or {}
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
                    candidate.kill()
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
    candidate = Candidate(f"ceiling: {kind}", command, environment=_PLATFORMS[device], quiet=True)
    stack.enter_context(candidate)
    return candidate, candidate.facts() or {}


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
    low, median, high = statistics.quantiles(taken, n=4, method="inclusive")
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
