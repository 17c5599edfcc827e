"""What does cross-entropy cost at a vocabulary of 65, 50k and 250k, in time and in memory?

    python benchmarks/cross_entropy.py                               the CPU's sizes
    python benchmarks/cross_entropy.py --vocab 50257 --tokens 8192 --dim 768 --dtype bfloat16
    python benchmarks/cross_entropy.py --vocab 50257 --candidates plain 256 512 1024

From hidden states and a tied head, the loss and the gradients of both. `eqxformer` is what our
losses do; a number is `cross_entropy_of` with chunks of so many tokens; `plain` has all logits at
once, as optax and PyTorch do. Losses and gradients must agree before anything is timed.
Temporaries are what XLA sets aside beside arguments and results. The peak is by how much a process
grew at most in its first call, with results and without the compiler, which everybody can be asked
on a CPU; Linux alone tells it.
"""

import argparse
import functools
import itertools
import math
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from eqxformer.bench import harness
from eqxformer.bench.resident import growth

NAMED = ("eqxformer", "plain", "optax", "torch")
# Relative: rounding on a CPU; TensorFloat-32 on a GPU.
TOLERANCES = {("float32", "cpu"): 1e-4, ("float32", "gpu"): 3e-3}


def main() -> None:
    """Compares the candidates, or, with `--candidate`, is one of them."""
    options = arguments()
    if options.candidate:
        return serve(options)
    sizes = itertools.product(options.vocab, options.tokens)
    name = "cross_entropy" + ("" if options.dtype == "float32" else f"-{options.dtype}")
    results: list[dict[str, Any]] = []
    for vocab, tokens in sizes:
        results.append(measure(vocab, tokens, options))
        # Stays, whatever becomes of the others.
        print(f"\nwritten to {harness.write(__file__, name, results)}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vocab", nargs="+", type=int, default=[65, 50257, 250_000])
    parser.add_argument("--tokens", nargs="+", type=int, default=[2048])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--candidates", nargs="+", default=list(NAMED))
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--candidate", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(vocab: int, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """The candidates side by side at one size."""
    size = ["--vocab", str(vocab), "--tokens", str(tokens), "--dim", str(options.dim)]
    shared = [__file__, *size, "--dtype", options.dtype]
    commands = {name: [*shared, "--candidate", name] for name in options.candidates}
    agree = functools.partial(check, dtype=options.dtype)
    found = harness.compare(
        commands,
        repetitions=options.repetitions,
        check=agree,
        may_fail=set(commands) - {"eqxformer"},
    )
    print(f"\nvocabulary {vocab:,}, {tokens:,} tokens, dim {options.dim}, {options.dtype}")
    print(f"  {'':<12}{'ms':>9}  {'quartiles':<17}{'temporaries':>12}{'peak':>10}")
    for name, result in found.items():
        low, high = (f"{1e3 * time:.1f}" for time in result["quartiles"])
        sizes = [result["temporary_bytes"], result["peak_bytes"]]
        shown = [f"{size / 1e6:,.0f} MB" if size is not None else "" for size in sizes]
        print(
            f"  {name:<12}{1e3 * result['median']:9.1f}  {f'{low} - {high}':<17}"
            f"{shown[0]:>12}{shown[1]:>10}"
        )
    return {"vocab": vocab, "tokens": tokens, "dim": options.dim, "candidates": found}


def check(found: dict[str, dict[str, Any]], dtype: str) -> None:
    """Refuses to compare what does not compute the same."""
    tolerance = TOLERANCES.get((dtype, harness.jax_platform()), 3e-2)
    first, *others = found
    for name in others:
        pairs = zip(found[first]["computed"], found[name]["computed"], strict=True)
        if not all(math.isclose(a, b, rel_tol=tolerance) for a, b in pairs):
            sys.exit(f"Different losses or gradients: {found[first]}, {found[name]}.")


def numbers(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states, a token table and targets, the same for everybody."""
    random = np.random.default_rng(0)
    vocab, tokens = options.vocab[0], options.tokens[0]
    hidden = random.standard_normal((tokens, options.dim), np.float32)
    table = 0.05 * random.standard_normal((vocab, options.dim), np.float32)
    return hidden, table, random.integers(0, vocab, tokens)


def serve(options: argparse.Namespace) -> None:
    """One candidate."""
    harness.needs(*{"optax": ["optax"], "torch": ["torch"]}.get(options.candidate, []))
    arrays = numbers(options)
    ours = options.candidate != "torch"
    repeat, computed, temporary = (with_jax if ours else with_torch)(options, *arrays)
    grown = growth(repeat)
    if os.environ.get(harness.PLATFORM) != "cpu":
        grown = None  # the memory is another's
    harness.serve(repeat, computed=computed(), temporary_bytes=temporary, peak_bytes=grown)


def loss_of(name: str) -> Callable[..., Any]:
    """A candidate's mean loss as a function of hidden states, table and targets."""
    import eqxformer as ef

    def ours(hidden: Any, table: Any, targets: Any) -> Any:
        chunk = None if name == "eqxformer" else int(name)
        return ef.cross_entropy_of(hidden, table.attend, targets, chunk=chunk).mean

    def plain(hidden: Any, table: Any, targets: Any) -> Any:
        return ef.cross_entropy(table.attend(hidden), targets).mean

    def with_optax(hidden: Any, table: Any, targets: Any) -> Any:
        import jax.numpy as jnp
        import optax

        logits = table.attend(hidden).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    return {"plain": plain, "optax": with_optax}.get(name, ours)


def with_jax(options: argparse.Namespace, *arrays: np.ndarray) -> tuple[Any, Any, int | None]:
    """A repetition, what it computed, and the bytes of temporaries."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    import eqxformer as ef

    hidden, weight, targets = (jnp.asarray(array) for array in arrays)
    hidden, weight = hidden.astype(options.dtype), weight.astype(options.dtype)
    table = eqx.tree_at(lambda t: t.weight, ef.Embedding(1, 1, key=jax.random.key(0)), weight)
    loss = jax.value_and_grad(loss_of(options.candidate), argnums=(0, 1))
    program = jax.jit(loss).lower(hidden, table, targets).compile()
    memory = program.memory_analysis()
    last: list[Any] = [None]

    def repeat() -> None:
        last[0] = None  # its memory is free for the next
        last[0] = jax.block_until_ready(program(hidden, table, targets))

    def computed() -> list[float]:
        value, gradients = last[0]
        squares = (jnp.square(g.astype(jnp.float32)).sum() for g in jax.tree.leaves(gradients))
        return [float(value), *(float(jnp.sqrt(each)) for each in squares)]

    return repeat, computed, None if memory is None else memory.temp_size_in_bytes


def with_torch(options: argparse.Namespace, *arrays: np.ndarray) -> tuple[Any, Any, int | None]:
    """The same in PyTorch, which tells temporaries on a GPU only."""
    import torch

    torch.set_float32_matmul_precision("high")  # as JAX's do
    where, dtype = harness.torch_device(), getattr(torch, options.dtype)
    hidden, table = (torch.tensor(a, device=where).to(dtype) for a in arrays[:2])
    hidden.requires_grad_()
    table.requires_grad_()
    targets = torch.tensor(arrays[2], device=where)
    last: list[Any] = [None]

    def repeat() -> None:
        hidden.grad = table.grad = None
        loss = torch.nn.functional.cross_entropy((hidden @ table.T).float(), targets)
        loss.backward()
        last[0] = loss.detach()
        if where == "cuda":
            torch.cuda.synchronize()

    def computed() -> list[float]:
        norms = (each.grad.float().norm() for each in (hidden, table))
        return [float(last[0]), *(float(norm) for norm in norms)]

    temporary = None
    if where == "cuda":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        repeat()
        results = sum(each.numel() * each.element_size() for each in (hidden, table))
        temporary = torch.cuda.max_memory_allocated() - held - results
    return repeat, computed, temporary


if __name__ == "__main__":
    main()
