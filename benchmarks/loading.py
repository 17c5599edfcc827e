"""How much memory and time does loading a checkpoint take?

    python benchmarks/loading.py

Writes a Llama of 124 million random weights, in float32 and in bfloat16, in one file and in shards,
and loads each in processes of their own. Memory is the growth of the process's largest resident
size over what it was before the checkpoint was opened, as a multiple of the weights that result.
With transformers installed, it loads the same directories in turn.
"""

import argparse
import importlib.util
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from eqxformer.bench import harness

SIZES = {"vocab": 32_000, "dim": 768, "layers": 12, "heads": 12, "hidden": 2048}
KINDS = {
    "float32, one file": ("float32", "10GB", "float32"),
    "float32, shards of 100 MB": ("float32", "100MB", "float32"),
    "bfloat16, one file": ("bfloat16", "10GB", "bfloat16"),
    "bfloat16, loaded as float32": ("bfloat16", "10GB", "float32"),
}


def main() -> None:
    """Compares ours and the reference, or, with `--load`, is one of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--load", nargs=3, metavar=("WHO", "DIRECTORY", "DTYPE"))
    options = parser.parse_args()
    if options.load:
        return LOADERS[options.load[0]](*options.load[1:])
    present = importlib.util.find_spec("transformers") and importlib.util.find_spec("torch")
    who = [name for name in LOADERS if name == "eqxformer" or present]
    with tempfile.TemporaryDirectory() as folder:
        results = {
            kind: measure(pathlib.Path(folder, str(number)), kind, who, options.repetitions)
            for number, kind in enumerate(KINDS)
        }
    show(results)
    print(f"\nwritten to {harness.write(__file__, 'loading', {'sizes': SIZES, **results})}")


def measure(folder: pathlib.Path, kind: str, who: list[str], repetitions: int) -> dict[str, Any]:
    """Medians of seconds and of memory for one kind of checkpoint."""
    stored, shards, dtype = KINDS[kind]
    subprocess.run([sys.executable, "-c", WRITE, str(folder), stored, shards], check=True)
    found: dict[str, list[list[float]]] = {name: [] for name in who}
    for _ in range(repetitions):
        for name in who:
            command = [sys.executable, __file__, "--load", name, str(folder), dtype]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[name].append([float(word) for word in printed.split()[-3:]])
    return {
        name: {
            "seconds": statistics.median(run[0] for run in runs),
            "weights_mb": runs[0][2] / 1e6,
            "memory": statistics.median(run[1] / run[2] for run in runs),
        }
        for name, runs in found.items()
    }


WRITE = f"""
import sys
import jax, eqxformer as ef
config = ef.families.llama(**{SIZES})
model = config.build(key=jax.random.key(0))
model = jax.tree.map(lambda a: a.astype(sys.argv[2]), model)
ef.save_pretrained(model, sys.argv[1], model_type="llama", shard_size=sys.argv[3])
"""


def load_ours(directory: str, dtype: str) -> None:
    """Prints seconds, growth of memory in bytes, and the bytes of the weights."""
    import jax
    import jax.numpy as jnp

    import eqxformer as ef

    jnp.ones(3).block_until_ready()
    _ = ef.from_pretrained
    before, start = largest(), time.perf_counter()
    model = ef.from_pretrained(directory, dtype=dtype)
    jax.block_until_ready(model)
    report(before, start, sum(leaf.nbytes for leaf in jax.tree.leaves(model)))


def load_theirs(directory: str, dtype: str) -> None:
    """The same with transformers and torch."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.ones(3)
    before, start = largest(), time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    total = sum(float(p.sum()) != 0.5 and p.nbytes for p in model.parameters())  # touches all
    report(before, start, total)


LOADERS = {"eqxformer": load_ours, "transformers": load_theirs}


def largest() -> int:
    """The largest resident size of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def report(before: int, start: float, weights: int) -> None:
    """One line: seconds, growth, weights."""
    print(time.perf_counter() - start, largest() - before, weights)


def show(results: dict[str, Any]) -> None:
    """The table."""
    print(f"\n{'':30}{'':14}{'seconds':>9}{'memory / weights':>18}")
    for kind, found in results.items():
        for name, facts in found.items():
            print(f"{kind:30}{name:14}{facts['seconds']:9.2f}{facts['memory']:18.2f}")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
