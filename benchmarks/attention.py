"""How fast is attention alone, and how much memory does it take, over lengths?

    python benchmarks/attention.py                               causal, 128 to 8192 tokens
    python benchmarks/attention.py --window 256 --kv-heads 2     a window, and grouped keys
    python benchmarks/attention.py --dtype bfloat16 --heads 12 --tokens 65536     for a GPU

Our `attend`, torch's `scaled_dot_product_attention` and JAX's `jax.nn.dot_product_attention` get
the same queries, keys and values, forward alone and with the gradients of all three, and must agree
before anything is timed. A batch has `--tokens` tokens; lengths above that are measured one by one.
A call is waited for; on a GPU many queue up, and the last is.
Temporaries are what the compiler sets aside beside arguments and results, or, of torch on a GPU,
what its allocator held at most beside them.
"""

import argparse
import functools
import itertools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from eqxformer.bench import harness

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
PASSES = {"forward": "forward", "both": "forward and backward"}
LEAST_SECONDS = 0.02  # of a repetition, which calls as often as that takes
TOLERANCES = {("float32", "cpu"): 1e-4, ("float32", "gpu"): 1e-2}  # as shares of the largest number
Arrays = list[np.ndarray]  # queries, keys, values, and the gradient of what comes out


def main() -> None:
    """Compares the candidates, or, with `--candidate`, is one of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--tokens", type=int, default=4096, help="of a batch, at the least one row")
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--kv-heads", type=int, help="fewer heads of keys and values")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--window", type=int, help="keys that a query sees, itself among them")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--candidates", nargs="+", choices=MAKE, default=list(MAKE))
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--candidate", nargs=2, metavar=("WHO", "PASS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.heads % (options.kv_heads or options.heads):
        parser.error(f"--kv-heads {options.kv_heads} must divide --heads {options.heads}.")
    if options.candidate:
        return serve(options)
    about = ("heads", "kv_heads", "head_dim", "window", "dtype")
    results: dict[str, Any] = {"sizes": {name: getattr(options, name) for name in about}}
    for length, which in itertools.product(options.lengths, PASSES):
        results[f"{length}, {PASSES[which]}"] = measure(length, which, options)
        path = harness.write(__file__, saved_as(options), results)  # stays, whatever comes after
    print(f"\nwritten to {path}")


def saved_as(options: argparse.Namespace) -> str:
    """The name of the results: what is not usual stands in it."""
    parts = [f"window_{options.window}" if options.window else ""]
    parts += [f"kv_{options.kv_heads}" if options.kv_heads else ""]
    parts += [options.dtype if options.dtype != "float32" else ""]
    return "-".join(["attention", *filter(None, parts)])


def measure(length: int, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The candidates side by side at one length; what has no room is left out."""
    batch = max(1, options.tokens // length)
    print(f"\n{batch} x {length} tokens, {PASSES[name]}", flush=True)
    shared = [__file__, *sys.argv[1:], "--lengths", str(length), "--candidate"]
    commands = {who: [*shared, who, name] for who in options.candidates}
    try:
        agree = functools.partial(check_numbers, dtype=options.dtype)
        found = harness.compare(
            commands,
            repetitions=options.repetitions,
            check=agree,
            may_fail=set(commands) - {"eqxformer"},
        )
    except RuntimeError as error:
        print(f"  left out: {error}")
        return {"batch": batch, "left_out": str(error)}
    for who, result in found.items():
        del result["numbers"]
        result["flops_per_second"] = result["flops"] / result["median"]
        low, high = result["quartiles"]
        bytes_ = result["temporary_bytes"]
        memory = "not told" if bytes_ is None else f"{bytes_ / 1e6:,.1f} MB"
        print(
            f"  {who:<10}{1e3 * result['median']:10.2f} ms ({1e3 * low:.2f}-{1e3 * high:.2f})"
            f"{result['flops_per_second'] / 1e9:10,.1f} GFLOP/s   temporaries {memory}"
        )
    return {"batch": batch, "candidates": found}


def check_numbers(found: dict[str, dict[str, Any]], dtype: str) -> None:
    """Refuses to compare candidates that do not compute the same."""
    tolerance = TOLERANCES.get((dtype, harness.jax_platform()), 0.1)
    first, *others = found
    right = np.asarray(found[first]["numbers"])
    for who in others:
        error = np.abs(np.asarray(found[who]["numbers"]) - right).max()
        if not error <= tolerance * np.abs(right).max():
            sys.exit(f"The numbers of {who} and {first} differ by {error}.")


def serve(options: argparse.Namespace) -> None:
    """One candidate at one length: some of its numbers, then calls on demand."""
    who, name = options.candidate
    if who == "torch":
        harness.needs("torch")
    (length,) = options.lengths
    kv_heads = options.kv_heads or options.heads
    batch = max(1, options.tokens // length)
    draw = np.random.default_rng(0)
    shapes = [(batch, h, length, options.head_dim) for h in (options.heads, kv_heads, kv_heads)]
    arrays = [draw.standard_normal(shape, np.float32) for shape in (*shapes, shapes[0])]
    run, wait, bytes_ = MAKE[who](arrays, options.window, options.dtype, name == "both")
    last = (-1, length // 2, -1) if who == "jax.nn" else (-1, -1, length // 2)
    numbers = [float(each) for x in wait(run()) for each in x[last][:8]]
    each = wait if harness.on_cpu() else lambda out: out
    repeat, calls = harness.repeated(lambda: each(run()), least=LEAST_SECONDS, wait=wait)
    seen = sum(min(place + 1, options.window or length) for place in range(length))
    flops = 4.0 * batch * options.heads * options.head_dim * seen * (3 if name == "both" else 1)
    harness.serve(repeat, calls=calls, flops=flops, numbers=numbers, temporary_bytes=bytes_())


def ours(arrays: Arrays, window: int | None, dtype: str, both: bool) -> Any:
    """eqxformer's kernel call, with the backend it chooses."""
    import eqxformer as ef

    mask = ef.Causal() if window is None else ef.Causal() & ef.Window(window - 1, 0)
    scoring = ef.layers.Scoring(scale=arrays[0].shape[-1] ** -0.5)

    def attention(q: Any, k: Any, v: Any) -> Any:
        return ef.attend(q, k, v, scoring=scoring, mask=mask)

    return jitted(attention, arrays, dtype, both)


def jax_nn(arrays: Arrays, window: int | None, dtype: str, both: bool) -> Any:
    """`jax.nn.dot_product_attention`, which has the heads behind the sequence."""
    import jax

    gpu = jax.default_backend() == "gpu" and dtype == "bfloat16"

    def attention(q: Any, k: Any, v: Any) -> Any:
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            is_causal=True,
            local_window_size=None if window is None else (window - 1, 0),
            implementation="cudnn" if gpu else "xla",
        )

    turned = [np.ascontiguousarray(array.swapaxes(1, 2)) for array in arrays]
    return jitted(attention, turned, dtype, both)


def jitted(attention: Callable[..., Any], arrays: Arrays, dtype: str, both: bool) -> Any:
    """Calls of a function of JAX, what waits for one, and the bytes of its temporaries."""
    import jax
    import jax.numpy as jnp

    *inputs, gradient = [jnp.asarray(array, dtype) for array in arrays]

    def whole(q: Any, k: Any, v: Any, g: Any) -> Any:
        out, back = jax.vjp(attention, q, k, v)
        return out, *back(g)

    if both:
        inputs.append(gradient)
    else:
        whole = lambda *given: (attention(*given),)  # noqa: E731
    compiled = jax.jit(whole).lower(*inputs).compile()
    memory = compiled.memory_analysis()
    bytes_ = None if memory is None else memory.temp_size_in_bytes
    return (lambda: compiled(*inputs)), jax.block_until_ready, lambda: bytes_


def torch_sdpa(arrays: Arrays, window: int | None, dtype: str, both: bool) -> Any:
    """`scaled_dot_product_attention`; a window is a mask to it."""
    import torch
    import torch.nn.functional as F  # noqa: N812 - its usual name

    device = harness.torch_device()
    torch.set_float32_matmul_precision("high")
    tensors = [torch.tensor(a, device=device, dtype=getattr(torch, dtype)) for a in arrays]
    q, k, v, gradient = tensors
    for each in (q, k, v):
        each.requires_grad_(both)
    place = torch.arange(q.shape[-2], device=device)
    ahead = place[:, None] - place[None, :]
    mask = None if window is None else (ahead >= 0) & (ahead < window)
    how = {"attn_mask": mask, "is_causal": mask is None, "enable_gqa": k.shape[1] < q.shape[1]}

    def run() -> Any:
        with torch.set_grad_enabled(both):
            out = F.scaled_dot_product_attention(q, k, v, **how)
            back = torch.autograd.grad(out, (q, k, v), gradient) if both else ()
        return out.detach(), *back

    def wait(results: Any) -> Any:
        if device == "cuda":
            torch.cuda.synchronize()
        return results

    def bytes_() -> int | None:
        if device == "cpu":
            return None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = run()
        peak = torch.cuda.max_memory_allocated() - before
        return peak - sum(each.nbytes for each in results)

    return run, wait, bytes_


MAKE: dict[str, Callable[[Arrays, int | None, str, bool], Any]] = {
    "eqxformer": ours,
    "torch": torch_sdpa,
    "jax.nn": jax_nn,
}


if __name__ == "__main__":
    main()
