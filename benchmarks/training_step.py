"""How fast is a training step, beside the same model in other libraries?

    python benchmarks/training_step.py                  vpj, nano and baby, whatever is installed
    python benchmarks/training_step.py --sizes nano --candidates eqxformer torch --plot
    python benchmarks/training_step.py --sizes gpt2 llama --dtype bfloat16            for a GPU

All candidates begin with the same weights, see the same batch and use the same AdamW, and their
losses before the first, second and third update must agree before anything is timed. eqxformer is
what its users write, `make_step` with one of the losses; `peers/` has the others. Candidates that
are not installed are named and left out. A large matrix product and a large copy are measured in
the same run; the table gives each candidate's share of them.
"""

import argparse
import dataclasses
import math
import pathlib
import sys
import tempfile
import time
from typing import Any

import peers
from peers import task as tasks

from eqxformer.bench import ceilings, harness, plot

USUAL = ("vpj", "nano", "baby")  # gpt2 and llama are for a GPU
BASES = ("torch", "plain equinox")  # times are given as multiples of theirs
# Differences of the losses: rounding on a CPU, which Adam makes larger where gradients are small,
# 5e-7 on the small sizes and 4e-6 on gpt2; TensorFloat-32 and bfloat16 have few digits.
TOLERANCES = {("float32", "cpu"): 1e-5, ("float32", "gpu"): 1e-3, ("bfloat16", "cpu"): 3e-2}


def main() -> None:
    """Compares the candidates, or, with `--candidate`, is one of them."""
    options = arguments()
    if options.candidate:
        return serve(options)
    if options.plot:
        plot.check()
    name = "training_step" + ("" if options.dtype == "float32" else f"-{options.dtype}")
    name += f"-batch{options.batch}" if options.batch else ""
    results: dict[str, Any] = {}
    for size in options.sizes:
        results[size] = measure(size, options)
        path = harness.write(__file__, name, results)  # stays, whatever becomes of the others
        print(f"\nwritten to {path}")
    if options.plot:
        panels = {title(size, options): results[size]["candidates"] for size in options.sizes}
        print(f"drawn in {plot.bars(panels, path.with_suffix('.svg'), BASES[0])}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=tasks.SIZES, default=list(USUAL))
    parser.add_argument("--candidates", nargs="+", choices=peers.PEERS, default=list(peers.PEERS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, help="sequences per step, instead of the size's own")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--plot", action="store_true", help="also draws the results")
    parser.add_argument("--candidate", choices=peers.PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=pathlib.Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def sized(name: str, options: argparse.Namespace) -> tasks.Size:
    """A size, with the batch that was asked for."""
    size = tasks.SIZES[name]
    return dataclasses.replace(size, batch=options.batch) if options.batch else size


def title(name: str, options: argparse.Namespace) -> str:
    """What a size is, in a line."""
    size = sized(name, options)
    tokens = f"{size.source} + {size.seq}" if size.source else f"{size.seq}"
    rows = f"{size.batch} x {tokens} tokens, vocabulary {size.vocab:,}"
    return f"{name}: {size.kind}, {size.layers} layers, dim {size.dim}, {rows}, {options.dtype}"


def serve(options: argparse.Namespace) -> None:
    """One candidate: its losses of the first steps, then steps on demand."""
    harness.needs(*peers.PEERS[options.candidate].modules)
    size = sized(options.sizes[0], options)
    task = tasks.read(size, options.dtype, options.start)
    start = time.perf_counter()
    step = peers.step(options.candidate, task)
    losses = [step()]
    first = time.perf_counter() - start
    losses += [step(), step()]
    repeat, calls = harness.repeated(step)
    harness.serve(repeat, calls=calls, losses=losses, first_step_seconds=first)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The candidates side by side at one size, and the ceilings."""
    size = sized(name, options)
    print(f"\n{title(name, options)}", flush=True)
    there = [c for c in options.candidates if size.kind in peers.PEERS[c].kinds]
    for candidate in options.candidates:
        if candidate not in there:
            print(f"{candidate} is left out: there is no {size.kind} of it here.", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        start = pathlib.Path(folder, "start.npz")
        tasks.write(size, start)
        shared = [__file__, "--sizes", name, "--dtype", options.dtype, "--start", str(start)]
        shared += ["--batch", str(options.batch)] if options.batch else []
        commands = {c: [*shared, "--candidate", c] for c in there}
        commands |= ceilings.commands(("product", "copy"), dtype=options.dtype)
        found = harness.compare(
            commands,
            repetitions=options.repetitions,
            check=lambda facts: check_losses(facts, options.dtype),
            may_fail=set(there) - {"eqxformer"},
        )
    most = ceilings.take(found)
    judge(found, size, options.dtype, most)
    show(found, most)
    return {"size": dataclasses.asdict(size), "ceilings": most, "candidates": found}


def check_losses(facts: dict[str, dict[str, Any]], dtype: str) -> None:
    """Refuses to time models that do not compute the same."""
    platform = harness.machine()["platform"]
    tolerance = TOLERANCES.get((dtype, platform), 3e-2)
    every = {name: told["losses"] for name, told in facts.items() if "losses" in told}
    for name, losses in every.items():
        first, right = next(iter(every.items()))
        pairs = zip(losses, right, strict=True)
        if not all(math.isclose(*pair, rel_tol=tolerance) for pair in pairs):
            sys.exit(f"Different losses: {first} has {right}, {name} {losses}.")


def judge(
    found: dict[str, dict[str, Any]], size: tasks.Size, dtype: str, most: dict[str, Any]
) -> None:
    """Adds what follows from the time of a step: rates, multiples, shares of the ceilings."""
    config = tasks.config(size)
    flops = ceilings.step_flops(config, size.batch, size.seq, source=size.source)
    moved = ceilings.step_bytes(config, dtype=dtype)
    for result in found.values():
        seconds = result["median"]
        result["tokens_per_second"] = size.tokens / seconds
        result["time_relative_to"] = {
            base: seconds / found[base]["median"] for base in BASES if base in found
        }
        result["model_flops"], result["flops_per_second"] = flops, flops / seconds
        result["model_flops_utilisation"] = flops / seconds / most["product"]["per_second"]
        result["bytes_per_second"] = moved / seconds
        result["share_of_copy"] = moved / seconds / most["copy"]["per_second"]


def show(found: dict[str, dict[str, Any]], most: dict[str, Any]) -> None:
    """The table."""
    bases = [base for base in BASES if base in found]
    head = f"  {'':<14}{'ms':>9}  {'quartiles':<17}{'tokens/s':>10}"
    head += "".join(f"  {'x ' + base:>15}" for base in bases)
    print(f"{head}{'MFU':>7}{'GB/s':>7}")
    for name, result in found.items():
        low, high = (f"{1e3 * time:.1f}" for time in result["quartiles"])
        multiples = "".join(f"{result['time_relative_to'][base]:17.2f}" for base in bases)
        print(
            f"  {name:<14}{1e3 * result['median']:9.1f}  {f'{low} - {high}':<17}"
            f"{result['tokens_per_second']:10,.0f}{multiples}"
            f"{result['model_flops_utilisation']:7.0%}{result['bytes_per_second'] / 1e9:7.2f}"
        )
    print(f"  {ceilings.line(most)}; MFU is the share of the product, GB/s of weights and moments")


if __name__ == "__main__":
    main()
