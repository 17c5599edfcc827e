"""How long until the first training step is done, and how does that grow with depth?

    python benchmarks/compile_time.py                             depth 2 to 48, both layouts
    python benchmarks/compile_time.py --depths 4 24 --layouts scanned
    python benchmarks/compile_time.py --layouts unrolled --depths 6 --threshold 1

A model of nanoGPT's "baby" width is built, and its first step made, in a process of its own: once
with nothing cached, and once more with what JAX's persistent cache has kept of that. JAX keeps
programs that took a second to compile; here it keeps all (the threshold is 0), as weights are drawn
by many quick ones; `--threshold 1` is JAX's own choice.

`build` is the model and the optimizer's memory, `first` and `second` are steps. `total` is the time
from the start of the process to the end of the first step, `ready` that without the step's own
work, for which the second step stands. `programs` is how many were compiled or read from the cache,
`compiling` the seconds of that.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from eqxformer.bench import harness

LAYOUTS = ("unrolled", "scanned")
PHASES = ("import", "build", "first", "second")
_COMPILED = "/jax/core/compile/backend_compile_duration"


def main() -> None:
    """Starts the processes in turn, or, with `--layout`, is one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--depths", nargs="+", type=int, default=[2, 4, 12, 24, 48])
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threshold", type=float, default=0.0, help="least seconds to be cached")
    parser.add_argument("--layout", choices=LAYOUTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.layout:
        return print(json.dumps(first_step(options)))
    print(
        f"{'seconds':<22}"
        + "".join(f"{name:>9}" for name in (*PHASES, "total", "ready", "compiling", "programs"))
    )
    harness.share_device()  # with this process, which asks JAX what the machine is
    results: dict[str, dict[int, Any]] = {}
    for layout, depth in itertools.product(options.layouts, options.depths):
        results.setdefault(layout, {})[depth] = measure(layout, depth, options)
        path = harness.write(__file__, "compile_time", results)  # stays, whatever comes after
    for layout, of_depth in results.items():
        growth(layout, of_depth)
    print(f"\nwritten to {path}")


def measure(layout: str, depth: int, options: argparse.Namespace) -> dict[str, Any]:
    """The quickest of several starts, with an empty cache and with a full one."""
    found: dict[str, list[Any]] = {"cold": [], "cached": []}
    for _ in range(options.repetitions):
        with tempfile.TemporaryDirectory() as cache:
            for kind in found:
                found[kind].append(start(layout, depth, cache, options))
    best = {kind: min(several, key=lambda f: f["ready"]) for kind, several in found.items()}
    for kind, result in best.items():
        cells = "".join(
            f"{result[phase]:9.2f}" for phase in (*PHASES, "total", "ready", "compiling")
        )
        print(f"{layout:<9} {depth:>3} {kind:<8}{cells}{result['programs']:9}", flush=True)
    return best


def growth(layout: str, of_depth: dict[int, dict[str, Any]]) -> None:
    """How much longer a deeper model takes than one of four layers."""
    if 4 in of_depth:
        for kind in ("cold", "cached"):
            base = of_depth[4][kind]["ready"]
            ratios = (f"{d}: {f[kind]['ready'] / base:.2f}" for d, f in of_depth.items())
            print(f"{layout}, {kind}, `ready` beside 4 layers: {', '.join(ratios)}")


def start(layout: str, depth: int, cache: str, options: argparse.Namespace) -> dict[str, Any]:
    """One process from its start to the end of its first step."""
    sizes = {"dim": options.dim, "seq": options.seq, "batch": options.batch}
    arguments = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    command = [sys.executable, __file__, "--layout", layout, "--depths", str(depth), *arguments]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed has its bytecode
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(options.threshold)
    begin = time.time()  # a clock that two processes share
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The process failed: {done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    total = found.pop("stepped") - begin
    return {**found, "total": total, "ready": total - found["second"]}


def first_step(options: argparse.Namespace) -> dict[str, Any]:
    """The seconds of each phase up to the first step's end, and the programs compiled or read."""
    times = [time.perf_counter()]

    def lap() -> None:
        times.append(time.perf_counter())

    import jax
    import jax.numpy as jnp

    import eqxformer as ef

    programs: list[float] = []

    def heard(event: str, duration_secs: float, **about: str | int) -> None:
        if event == _COMPILED:
            programs.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(heard)
    layout = ef.Scanned() if options.layout == "scanned" else ef.Unrolled()
    config = ef.families.gpt(
        vocab=65, dim=options.dim, layers=options.depths[0], heads=6, context=options.seq
    ).edit(layout=layout)
    optimizer = ef.AdamW(1e-3).build(steps=1000)
    lap()
    model = config.build(key=jax.random.key(0))
    state = ef.TrainState.create(model, optimizer, key=jax.random.key(1))
    jax.block_until_ready(jax.tree.leaves(state))
    lap()
    batch = ef.TokenBatch(jnp.zeros((options.batch, options.seq + 1), jnp.int32))
    step = ef.make_step(ef.next_token_loss, optimizer)
    stepped = []
    for _ in range(2):
        state, metrics = step(state, batch)
        metrics["loss"].block_until_ready()
        lap()
        stepped.append(time.time())
    spans = (after - before for before, after in itertools.pairwise(times))
    found = dict(zip(PHASES, spans, strict=True))
    return {
        **found,
        "stepped": stepped[0],
        "programs": len(programs),
        "compiling": sum(programs),
    }


if __name__ == "__main__":
    main()
