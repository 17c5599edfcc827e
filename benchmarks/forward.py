"""How fast is a forward pass, beside the same model in PyTorch and in plain Equinox?

    python benchmarks/forward.py                         vpj, nano and baby
    python benchmarks/forward.py --sizes gpt2 llama --dtype bfloat16              for a GPU

The logits of a batch, of models with the same weights, which must agree before anything is timed.
Candidates that are not installed are named and left out. A large matrix product is measured in the
same run; the table gives each candidate's share of it.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from peers import PEERS
from peers import task as tasks

from eqxformer.bench import ceilings, harness

CANDIDATES = ("eqxformer", "torch", "torch.compile", "plain equinox")
BASES = ("torch", "plain equinox")  # times are given as multiples of theirs
USUAL = ("vpj", "nano", "baby")  # the others are for a GPU
SIZES = [name for name, size in tasks.SIZES.items() if size.kind != "seq2seq"]
# Differences of logits, as shares of the largest: rounding on a CPU; TensorFloat-32 on a GPU.
TOLERANCES = {("float32", "cpu"): 1e-4, ("float32", "gpu"): 3e-3}


def main() -> None:
    """Compares the candidates, or, with `--candidate`, is one of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(USUAL))
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, help="sequences, instead of the size's own")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--candidate", choices=CANDIDATES, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.candidate:
        return serve(options)
    name = "forward" + ("" if options.dtype == "float32" else f"-{options.dtype}")
    name += f"-batch{options.batch}" if options.batch else ""
    results: dict[str, Any] = {}
    for size in options.sizes:
        results[size] = measure(size, options)
        # Stays, whatever becomes of the others.
        print(f"\nwritten to {harness.write(__file__, name, results)}")


def sized(name: str, options: argparse.Namespace) -> tasks.Size:
    """A size, with the batch that was asked for."""
    size = tasks.SIZES[name]
    return dataclasses.replace(size, batch=options.batch) if options.batch else size


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The candidates side by side at one size, and the ceiling."""
    size = sized(name, options)
    print(f"\n{name}: {size.batch} x {size.seq} tokens, {options.dtype}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        start = pathlib.Path(folder, "start.npz")
        tasks.write(size, start)
        shared = [__file__, "--sizes", name, "--dtype", options.dtype, "--start", str(start)]
        shared += ["--batch", str(options.batch)] if options.batch else []
        there = [each for each in options.candidates if size.kind in PEERS[each].kinds]
        commands = {each: [*shared, "--candidate", each] for each in there}
        commands |= ceilings.commands(("product",), dtype=options.dtype)
        agree = functools.partial(check_logits, dtype=options.dtype)
        found = harness.compare(
            commands,
            repetitions=options.repetitions,
            check=agree,
            may_fail=set(there) - {"eqxformer"},
        )
    most = ceilings.take(found)
    flops = ceilings.step_flops(tasks.config(size), size.batch, size.seq) / 3
    for each, result in found.items():
        seconds = result["median"]
        result["tokens_per_second"] = size.tokens / seconds
        result["flops_per_second"] = flops / seconds
        result["model_flops_utilisation"] = flops / seconds / most["product"]["per_second"]
        result["time_relative_to"] = {
            base: seconds / found[base]["median"] for base in BASES if base in found
        }
        low, high = result["quartiles"]
        print(
            f"  {each:<14}{1e3 * seconds:9.1f} ms ({1e3 * low:.1f}-{1e3 * high:.1f})"
            f"{result['tokens_per_second']:14,.0f} tokens/s"
            f"{result['model_flops_utilisation']:7.0%} of the product"
        )
    return {"size": dataclasses.asdict(size), "ceilings": most, "candidates": found}


def check_logits(found: dict[str, dict[str, Any]], dtype: str) -> None:
    """Refuses to compare models that do not compute the same."""
    tolerance = TOLERANCES.get((dtype, harness.jax_platform()), 0.1)
    first, *others = [name for name in found if "logits" in found[name]] or [None]
    if first is None:
        sys.exit("None of the candidates can be measured here.")
    right = np.asarray(found[first]["logits"])
    for name in others:
        error = np.abs(np.asarray(found[name]["logits"]) - right).max()
        if not error <= tolerance * np.abs(right).max():
            sys.exit(f"The logits of {name} and {first} differ by {error}.")


def serve(options: argparse.Namespace) -> None:
    """One candidate: some logits, then passes on demand."""
    harness.needs(*PEERS[options.candidate].modules)
    task = tasks.read(sized(options.sizes[0], options), options.dtype, options.start)
    make = {"eqxformer": ours, "plain equinox": plain_equinox}.get(options.candidate)
    if make is not None:
        run = make(task)
    else:
        run = torch_model(task, compiled=options.candidate == "torch.compile")
    logits = run()[-1, -1, :16]
    repeat, calls = harness.repeated(run)
    harness.serve(repeat, calls=calls, logits=[float(each) for each in logits])


def ours(task: tasks.Task) -> Callable[[], Any]:
    """eqxformer under `jit`."""
    import jax
    import jax.numpy as jnp

    import eqxformer as ef

    like = ef.shapes(tasks.config(task.size))
    leaves = [jnp.asarray(task.weights[name], task.dtype) for name in ef.named_arrays(like)]
    return jitted(jax.tree.unflatten(jax.tree.structure(like), leaves), task)


def plain_equinox(task: tasks.Task) -> Callable[[], Any]:
    """The model as people write it in Equinox, under `jit`."""
    import equinox as eqx
    import jax
    from peers.plain_equinox import GPT

    model = GPT(task)
    cast = jax.tree.map(lambda x: x.astype(task.dtype) if eqx.is_array(x) else x, model)
    return jitted(cast, task)


def jitted(model: Any, task: tasks.Task) -> Callable[[], Any]:
    """Passes of a model of JAX, each waited for."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    ids = jnp.asarray(task.tokens[:, :-1], jnp.int32)
    run = eqx.filter_jit(lambda model, ids: model(ids))
    return lambda: jax.block_until_ready(run(model, ids))


def torch_model(task: tasks.Task, compiled: bool) -> Callable[[], Any]:
    """Passes of a model of PyTorch, each waited for."""
    import torch
    from peers import torch_models
    from peers.torch_step import DEVICE

    torch.set_float32_matmul_precision("high")
    model = torch_models.decoder(task).to(device=DEVICE, dtype=getattr(torch, task.dtype)).eval()
    ids = torch.tensor(task.tokens[:, :-1], device=DEVICE)
    call = torch.compile(model) if compiled else model

    def run() -> Any:
        with torch.inference_mode():
            logits = call(ids)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return logits

    return run


if __name__ == "__main__":
    main()
