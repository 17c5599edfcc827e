"""What shape contracts cost: nothing in a compiled step, and this much wherever Python runs.

    python benchmarks/shape_checks.py

Two processes hold the same model and the same step, one with `EQXFORMER_CHECKS=1`. They are asked
in turn for one repetition at a time, so that whatever else the machine does falls on both alike.
Prints a table and writes `benchmarks/results/shape_checks.json`.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "shape_checks.json"
SIZES = {"vocab": 65, "dim": 128, "layers": 4, "heads": 4, "context": 64}
BATCH = 12
STEPS = 20  # in one repetition of the compiled step

ROWS = {
    "import": "import of eqxformer's parts",
    "trace": "tracing the step",
    "eager": "forward pass, eager",
    "step": "training step, compiled",
}


def work() -> None:
    """Answers every name on standard input with the seconds that one repetition of it took."""
    start = time.perf_counter()
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    libraries = time.perf_counter() - start
    start = time.perf_counter()
    import eqxformer as ef

    config = ef.families.gpt(**SIZES)
    parts = time.perf_counter() - start
    model = config.build(key=jax.random.key(0))
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    batch = ef.TokenBatch(jnp.zeros((BATCH, SIZES["context"] + 1), jnp.int32))

    @jax.jit
    def step(parameters, batch):
        def loss(parameters):
            return ef.next_token_loss(eqx.combine(parameters, static), batch).mean

        value, gradients = jax.value_and_grad(loss)(parameters)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, parameters, gradients)

    def trace():
        jax.clear_caches()
        start = time.perf_counter()
        lowered = step.lower(parameters, batch)
        return time.perf_counter() - start, lowered

    _, lowered = trace()
    compiled = lowered.compile()
    jax.block_until_ready(compiled(parameters, batch))

    def steps():
        nonlocal parameters
        start = time.perf_counter()
        for _ in range(STEPS):
            _, parameters = compiled(parameters, batch)
        jax.block_until_ready(parameters)
        return (time.perf_counter() - start) / STEPS

    def eager():
        start = time.perf_counter()
        jax.block_until_ready(model(batch.tokens[:, :-1]))
        return time.perf_counter() - start

    programs = [lowered.as_text(), without_places(compiled.as_text())]
    say(
        programs=[hashlib.sha256(text.encode()).hexdigest() for text in programs],
        lines=[text.count("\n") for text in programs],
        checked=hasattr(ef.DecoderLM.__call__, "__wrapped__"),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(parameters)),
        seconds={"libraries": libraries, "import": parts},
    )
    eager()  # compiles the single operations
    answers: dict[str, Callable[[], float]] = {
        "trace": lambda: trace()[0],
        "eager": eager,
        "step": steps,
    }
    for line in sys.stdin:
        say(seconds=answers[line.strip()]())


def say(**values: object) -> None:
    print(json.dumps(values), flush=True)


def without_places(program: str) -> str:
    """A compiled program without the names of the source lines that its operations came from."""
    program = re.sub(r", metadata=\{[^}]*\}", "", program)
    return re.split(r"^(?:FileNames|StackFrames)$", program, maxsplit=1, flags=re.MULTILINE)[0]


class Worker:
    """A process that measures, with checks on or off."""

    def __init__(self, checks: str):
        environment = {**os.environ, "EQXFORMER_CHECKS": checks}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self.hear()

    def hear(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a measuring process ended; its error is above.")
        return json.loads(line)

    def ask(self, what: str) -> float:
        assert self.process.stdin is not None
        print(what, file=self.process.stdin, flush=True)
        return self.hear()["seconds"]

    def close(self) -> None:
        self.process.communicate()


def measure(repetitions: int) -> dict:
    """The seconds of every repetition, off and on in turn, and what was compared."""
    seconds = {name: {"off": [], "on": []} for name in ROWS}
    for _ in range(3):  # an import can be timed once a process
        for state, checks in (("off", "0"), ("on", "1")):
            worker = Worker(checks)
            seconds["import"][state].append(worker.facts["seconds"]["import"])
            worker.close()
    workers = {"off": Worker("0"), "on": Worker("1")}
    for name in ("step", "eager", "trace"):  # tracing last: it empties the caches of the others
        for i in range(repetitions):
            for state in ("off", "on") if i % 2 else ("on", "off"):
                seconds[name][state].append(workers[state].ask(name))
    facts = {state: worker.facts for state, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    assert facts["on"]["checked"] and not facts["off"]["checked"]
    return {
        "what": "Shape contracts off and on, in two processes, one repetition at a time in turn",
        "command": "python benchmarks/shape_checks.py",
        "model": {"family": "gpt", **SIZES, "parameters": facts["on"]["parameters"]},
        "batch": [BATCH, SIZES["context"]],
        "repetitions": repetitions,
        "steps_per_repetition": STEPS,
        "same_stablehlo": facts["on"]["programs"][0] == facts["off"]["programs"][0],
        "same_compiled_hlo": facts["on"]["programs"][1] == facts["off"]["programs"][1],
        "lines_of_stablehlo_and_hlo": facts["on"]["lines"],
        "median_seconds": {
            name: {state: statistics.median(values) for state, values in both.items()}
            for name, both in seconds.items()
        },
        "seconds": seconds,
        "hardware": hardware(),
        "versions": versions(),
    }


def hardware() -> dict:
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            model = next((x.partition(":")[2].strip() for x in file if "model name" in x), model)
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system()}


def versions() -> dict:
    names = ["jax", "jaxlib", "equinox", "jaxtyping", "beartype"]
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


def table(result: dict) -> str:
    lines = [f"{'milliseconds, median':30}{'off':>10}{'on':>10}{'on / off':>10}"]
    for name, title in ROWS.items():
        off, on = (result["median_seconds"][name][state] * 1e3 for state in ("off", "on"))
        lines.append(f"{title:30}{off:10.2f}{on:10.2f}{on / off:10.2f}")
    stablehlo, hlo = result["lines_of_stablehlo_and_hlo"]
    same = {True: "the same", False: "DIFFERENT"}
    lines.append(f"StableHLO ({stablehlo} lines): {same[result['same_stablehlo']]}")
    lines.append(f"compiled HLO ({hlo} lines): {same[result['same_compiled_hlo']]}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=15, help="of each measurement")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return work()
    result = measure(arguments.repetitions)
    print(table(result))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
