"""What do shape contracts cost? Nothing in a compiled step; this much wherever Python runs.

    python benchmarks/shape_checks.py

The same model, with and without `EQXFORMER_CHECKS=1`, in processes of their own. The compiled
programs are compared as text, without the names of the source lines they come from.
"""

import argparse
import hashlib
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

STATES = {"off": "0", "on": "1"}
if "--checks" in sys.argv:  # a candidate; the variable is read when eqxformer is imported
    os.environ["EQXFORMER_CHECKS"] = STATES[sys.argv[sys.argv.index("--checks") + 1]]

from eqxformer.bench import harness  # noqa: E402

SIZES = {"vocab": 65, "dim": 128, "layers": 4, "heads": 4, "context": 64}
BATCH = 12
STEPS = 10  # in one repetition of the compiled step
QUESTIONS = {
    "step": f"{STEPS} training steps, compiled",
    "trace": "tracing the training step",
    "eager": "a forward pass, eager",
}


def main() -> None:
    """Compares checks off and on, or, with `--question`, is one of the candidates."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--question", choices=QUESTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--checks", choices=STATES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.question:
        return serve(options.question)
    results = {name: measure(name, options.repetitions) for name in QUESTIONS}
    show(results)
    print(f"\nwritten to {harness.write(__file__, 'shape_checks', {'sizes': SIZES, **results})}")


def measure(question: str, repetitions: int) -> dict[str, Any]:
    """One question asked with checks off and on in turn."""
    commands = {state: [__file__, "--question", question, "--checks", state] for state in STATES}
    found = harness.compare(commands, repetitions=repetitions)
    for state, facts in found.items():
        if facts["checked"] != (state == "on"):
            raise RuntimeError(f"The candidate with checks {state} has checked={facts['checked']}.")
    programs = [facts["programs"] for facts in found.values()]
    return {**found, "same_programs": programs[0] == programs[1]}


def show(results: dict[str, Any]) -> None:
    """The table: medians in milliseconds."""
    print(f"\n{'milliseconds':32}{'off':>9}{'on':>9}{'on / off':>10}")
    rows = {QUESTIONS[name]: [results[name][s]["median"] for s in STATES] for name in QUESTIONS}
    imports = [
        statistics.median(results[name][state]["import_seconds"] for name in QUESTIONS)
        for state in STATES
    ]
    for title, (off, on) in {**rows, "importing eqxformer's parts": imports}.items():
        print(f"{title:32}{1e3 * off:9.1f}{1e3 * on:9.1f}{on / off:10.2f}")
    same = all(results[name]["same_programs"] for name in QUESTIONS)
    lines = results["step"]["off"]["lines"]
    print(f"StableHLO ({lines[0]} lines) and compiled HLO ({lines[1]} lines) off and on: ", end="")
    print("identical" if same else "DIFFERENT")


def serve(question: str) -> None:
    """A candidate: one model, one training step, and one thing to repeat."""
    import equinox  # noqa: F401  (its own import is not ours to time)
    import jax
    import jax.numpy as jnp

    start = time.perf_counter()
    import eqxformer as ef

    config = ef.families.gpt(**SIZES)
    import_seconds = time.perf_counter() - start
    model = config.build(key=jax.random.key(0))
    batch = jnp.arange(BATCH * (SIZES["context"] + 1), dtype=jnp.int32) % SIZES["vocab"]
    batch = batch.reshape(BATCH, -1)
    step, parameters = training_step(model)
    lowered = step.lower(parameters, batch)
    compiled = lowered.compile()
    programs = [lowered.as_text(), without_places(compiled.as_text())]

    def steps() -> None:
        nonlocal parameters
        for _ in range(STEPS):
            _, parameters = compiled(parameters, batch)
        jax.block_until_ready(parameters)

    def trace() -> None:
        jax.clear_caches()
        step.lower(parameters, batch)

    def eager() -> None:
        jax.block_until_ready(model(batch[:, :-1]))

    repeat: dict[str, Callable[[], None]] = {"step": steps, "trace": trace, "eager": eager}
    harness.serve(
        repeat[question],
        checked=hasattr(ef.DecoderLM.__call__, "__wrapped__"),
        programs=[hashlib.sha256(text.encode()).hexdigest() for text in programs],
        lines=[text.count("\n") for text in programs],
        import_seconds=import_seconds,
    )


def training_step(model: Any) -> tuple[Any, Any]:
    """A jitted `step(parameters, batch)` of gradient descent, and the parameters."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    parameters, static = eqx.partition(model, eqx.is_inexact_array)

    def step(parameters: Any, batch: Any) -> tuple[Any, Any]:
        def loss(parameters: Any) -> Any:
            scores = jax.nn.log_softmax(eqx.combine(parameters, static)(batch[:, :-1]))
            return -jnp.take_along_axis(scores, batch[:, 1:, None], axis=-1).mean()

        value, gradients = jax.value_and_grad(loss)(parameters)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, parameters, gradients)

    return jax.jit(step), parameters


def without_places(program: str) -> str:
    """A compiled program without the names of the source lines that its operations came from."""
    program = re.sub(r", metadata=\{[^}]*\}", "", program)
    tables = r"^(?:FileNames|FunctionNames|FileLocations|StackFrames)\n(?:.+\n)*"
    return re.sub(tables, "", program, flags=re.MULTILINE)


if __name__ == "__main__":
    main()
