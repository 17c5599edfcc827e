"""How fast is a training step, beside the same model in plain Equinox?

    python benchmarks/training_step.py                      all sizes, prints tokens per second
    python benchmarks/training_step.py --sizes vpj nano     some of them

Plain Equinox is the model as people write it: `eqx.nn.MultiheadAttention`, `eqx.nn.LayerNorm` and
`eqx.nn.Linear` under `vmap`. Both start from the same weights, and their losses after one and
after three steps must agree before anything is timed.
"""

import argparse
import math
import sys
from typing import Any

from eqxformer.bench import harness

SIZES: dict[str, dict[str, int]] = {
    "vpj": {"dim": 128, "layers": 3, "heads": 8, "hidden": 512, "seq": 32, "batch": 128},
    "nano": {"dim": 128, "layers": 4, "heads": 4, "hidden": 512, "seq": 64, "batch": 12},
    "baby": {"dim": 384, "layers": 6, "heads": 6, "hidden": 1536, "seq": 256, "batch": 16},
    "gpt2": {"dim": 768, "layers": 12, "heads": 12, "hidden": 3072, "seq": 1024, "batch": 8},
}
USUAL = ("vpj", "nano", "baby")  # gpt2 is for a GPU
CANDIDATES = ("eqxformer", "plain equinox")
VOCAB, LEARNING_RATE, CLIP = 65, 1e-3, 1.0


def main() -> None:
    """Compares the candidates, or, with `--candidate`, is one of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(USUAL))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, help="sequences per step, instead of the size's own")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--candidate", choices=CANDIDATES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.candidate:
        size = dict(SIZES[options.sizes[0]])
        size["batch"] = options.batch or size["batch"]
        return serve(options.candidate, size, options.dtype)
    results = {size: measure(size, options) for size in options.sizes}
    name = "training_step" + ("" if options.dtype == "float32" else f"-{options.dtype}")
    print(f"\nwritten to {harness.write(__file__, name, results)}")


def measure(size: str, options: argparse.Namespace) -> dict[str, Any]:
    """The candidates side by side at one size."""
    shared = ["--sizes", size, "--dtype", options.dtype]
    shared += ["--batch", str(options.batch)] if options.batch else []
    commands = {name: [__file__, *shared, "--candidate", name] for name in CANDIDATES}
    found = harness.compare(commands, repetitions=options.repetitions)
    check_losses(found, 1e-4 if options.dtype == "float32" else 3e-2)
    tokens = (options.batch or SIZES[size]["batch"]) * SIZES[size]["seq"]
    slowest = found["plain equinox"]["median"]
    print(f"\n{size}: {SIZES[size]}, {options.dtype}, {tokens} tokens a step")
    for name, result in found.items():
        result["tokens_per_second"] = tokens / result["median"]
        result["time_relative_to_plain_equinox"] = result["median"] / slowest
        low, high = result["quartiles"]
        print(
            f"  {name:<14} {1e3 * result['median']:9.1f} ms ({1e3 * low:.1f}-{1e3 * high:.1f})"
            f"  {result['tokens_per_second']:12,.0f} tokens/s"
            f"  {result['median'] / slowest:5.2f} of plain Equinox's time"
        )
    return found


def check_losses(found: dict[str, dict[str, Any]], tolerance: float) -> None:
    """Refuses to compare models that do not compute the same."""
    ours, plain = (found[name]["losses"] for name in CANDIDATES)
    if not all(math.isclose(a, b, rel_tol=tolerance) for a, b in zip(ours, plain, strict=True)):
        sys.exit(f"The candidates differ: losses {ours} and {plain}.")


def serve(candidate: str, size: dict[str, int], dtype: str) -> None:
    """One candidate: its losses of the first steps, then steps on demand."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax
    from plain_equinox import GPT

    import eqxformer as ef

    config = ef.families.gpt(
        vocab=VOCAB,
        dim=size["dim"],
        layers=size["layers"],
        heads=size["heads"],
        hidden=size["hidden"],
        context=size["seq"],
    )
    model = config.build(key=jax.random.key(0))
    model = model if candidate == "eqxformer" else GPT(model)
    model = jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, model)
    ids = jax.random.randint(jax.random.key(1), (size["batch"], size["seq"] + 1), 0, VOCAB)
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(LEARNING_RATE))

    def loss(model: Any, ids: jax.Array) -> jax.Array:
        logits = model(ids[:, :-1]).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
        return losses.mean()

    @eqx.filter_jit(donate="all-except-first")
    def step(ids: jax.Array, model: Any, memory: Any) -> tuple[Any, Any, jax.Array]:
        value, gradients = eqx.filter_value_and_grad(loss)(model, ids)
        updates, memory = optimizer.update(gradients, memory, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), memory, value

    state = [model, optimizer.init(eqx.filter(model, eqx.is_array))]
    losses: list[float] = []

    def repeat() -> None:
        state[0], state[1], value = step(ids, *state)
        losses.append(float(value))  # waits for the step

    for _ in range(3):
        repeat()
    parameters = sum(x.size for x in jax.tree.leaves(eqx.filter(state[0], eqx.is_array)))
    harness.serve(repeat, losses=losses[:3], parameters=parameters)


if __name__ == "__main__":
    main()
