"""How much memory and time does loading a checkpoint take?

    python benchmarks/loading.py

Writes a Llama of 134 million random weights, in float32 and in bfloat16, in one file and in shards,
and loads each in processes of their own, which have imported what they load with. Memory is by how
much the process grew at most while it loaded, as a multiple of the weights that result; Linux alone
tells it. With transformers installed, it loads the same directories in turn.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from eqxformer.bench import harness
from eqxformer.bench.resident import growth

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
    found: dict[str, list[tuple[float, int | None, int]]] = {name: [] for name in who}
    for _ in range(repetitions):
        for name in who:
            command = [sys.executable, __file__, "--load", name, str(folder), dtype]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[name].append(json.loads(printed.splitlines()[-1]))
    return {
        name: {
            "seconds": statistics.median(seconds for seconds, *_ in runs),
            "weights_mb": runs[0][2] / 1e6,
            "memory": _median_share(runs),
        }
        for name, runs in found.items()
    }


def _median_share(runs: list[tuple[float, int | None, int]]) -> float | None:
    """Growth as a multiple of the weights, of the run in the middle."""
    grown = [growth / weights for _, growth, weights in runs if growth is not None]
    return statistics.median(grown) if grown else None


WRITE = f"""
import sys
import jax, eqxformer as ef
config = ef.families.llama(**{SIZES})
model = config.build(key=jax.random.key(0))
model = jax.tree.map(lambda a: a.astype(sys.argv[2]), model)
ef.save_pretrained(model, sys.argv[1], model_type="llama", shard_size=sys.argv[3])
"""


def load_ours(directory: str, dtype: str) -> None:
    """Loads with eqxformer."""
    import jax
    import jax.numpy as jnp

    import eqxformer as ef

    jnp.ones(3).block_until_ready()
    _ = ef.families, ef.architectures, ef.from_pretrained  # imported with their first use

    def load() -> list[Any]:
        model = jax.block_until_ready(ef.from_pretrained(directory, dtype=dtype))
        return [leaf.nbytes for leaf in jax.tree.leaves(model)]

    report(load)


def load_theirs(directory: str, dtype: str) -> None:
    """The same with transformers and torch."""
    import torch
    from transformers import LlamaForCausalLM

    torch.ones(3)

    def load() -> list[Any]:
        model = LlamaForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
        return [float(p.sum()) != 0.5 and p.nbytes for p in model.parameters()]  # touches all

    report(load)


LOADERS = {"eqxformer": load_ours, "transformers": load_theirs}


def report(load: Callable[[], list[int]]) -> None:
    """Loads; one line: seconds, growth of memory in bytes, and the bytes of the weights."""
    sizes: list[int] = []
    start = time.perf_counter()
    grown = growth(lambda: sizes.extend(load()))
    print(json.dumps([time.perf_counter() - start, grown, sum(sizes)]))


def show(results: dict[str, Any]) -> None:
    """The table."""
    print(f"\n{'':30}{'':14}{'seconds':>9}{'memory / weights':>18}")
    for kind, found in results.items():
        for name, facts in found.items():
            memory = "" if facts["memory"] is None else f"{facts['memory']:.2f}"
            print(f"{kind:30}{name:14}{facts['seconds']:9.2f}{memory:>18}")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
