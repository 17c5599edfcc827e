"""What does calling a training step cost beside the work in it?

    python benchmarks/call_overhead.py
    python benchmarks/call_overhead.py --layers 12

The step of a model so small that calling it is most of its time, made by `make_step`, beside the
same program as `jax.jit` on a flat list of arrays, which is the least that JAX can do. `filter_jit`
is how people write it: it takes state and results apart and together in every call.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from eqxformer.bench import harness

CANDIDATES = ("make_step", "jit of arrays", "filter_jit")
CALLS = 200  # of a repetition
TOLERANCES = {"cpu": 1e-5}  # of the losses: rounding; TensorFloat-32 on a GPU, 1e-3


def main() -> None:
    """Compares the candidates, or, with `--candidate`, is one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--candidate", choices=CANDIDATES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.candidate:
        return serve(options.candidate, options.layers)
    shared = [__file__, "--layers", str(options.layers), "--candidate"]
    commands = {name: [*shared, name] for name in CANDIDATES}
    found = harness.compare(commands, repetitions=options.repetitions, check=check)
    base = found["jit of arrays"]["median"]
    print(f"{options.layers} layers, {found['make_step']['arrays']} arrays; microseconds a call")
    for name, result in found.items():
        result["call_seconds"] = result["median"] / CALLS
        result["overhead_seconds"] = (result["median"] - base) / CALLS
        low, high = (f"{1e6 * time / CALLS:.0f}" for time in result["quartiles"])
        print(
            f"  {name:<14}{1e6 * result['call_seconds']:8.0f}  {f'{low} - {high}':<14}"
            f"{1e6 * result['overhead_seconds']:+8.0f}"
        )
    print(f"\nwritten to {harness.write(__file__, 'call_overhead', found)}")


def check(found: dict[str, dict[str, Any]]) -> None:
    """Refuses to compare what does not compute the same."""
    losses = {name: result["loss"] for name, result in found.items()}
    tolerance = TOLERANCES.get(harness.jax_platform(), 1e-3)
    if max(losses.values()) - min(losses.values()) > tolerance:
        sys.exit(f"Different losses: {losses}.")


def serve(candidate: str, layers: int) -> None:
    """One candidate: a repetition is so many calls, each waited for."""
    import jax
    import jax.numpy as jnp

    import eqxformer as ef

    config = ef.families.gpt(vocab=65, dim=8, layers=layers, heads=2, context=8)
    optimizer = ef.AdamW(1e-3).build(steps=1000)
    model = config.build(key=jax.random.key(0))
    state = ef.TrainState.create(model, optimizer, key=jax.random.key(1))
    batch = ef.TokenBatch(jnp.zeros((1, 9), jnp.int32))
    arrays = len(jax.tree.leaves(state))
    step = {"make_step": ours, "jit of arrays": flat, "filter_jit": filtered}[candidate]
    call = step(state, batch, optimizer)
    loss = float(call()["loss"])

    def repeat() -> None:
        for _ in range(CALLS):
            jax.block_until_ready(call())

    harness.serve(repeat, loss=loss, arrays=arrays)


def ours(state: Any, batch: Any, optimizer: Any) -> Callable[[], dict[str, Any]]:
    """`make_step`."""
    import eqxformer as ef

    step, held = ef.make_step(ef.next_token_loss, optimizer), [state]

    def call() -> dict[str, Any]:
        held[0], metrics = step(held[0], batch)
        return metrics

    return call


def update(state: Any, batch: Any, optimizer: Any) -> tuple[Any, dict[str, Any]]:
    """What `make_step` computes, written out."""
    import equinox as eqx
    import jax
    import optax

    import eqxformer as ef

    key = jax.random.fold_in(state.key, state.step)
    loss = eqx.filter_value_and_grad(ef.next_token_loss)
    value, gradients = loss(state.model, batch, key=key)
    weights = eqx.filter(state.model, eqx.is_inexact_array)
    changes, memory = optimizer.update(gradients, state.optimizer, weights)
    model = eqx.apply_updates(state.model, changes)
    metrics = {"loss": value, "gradient_norm": optax.global_norm(gradients)}
    return ef.TrainState(model, memory, state.step + 1, state.key), metrics


def flat(state: Any, batch: Any, optimizer: Any) -> Callable[[], dict[str, Any]]:
    """`jax.jit` from a list of arrays to a list of arrays."""
    import functools

    import jax

    import eqxformer as ef

    leaves, structure = jax.tree.flatten(state)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(leaves: list[Any], tokens: Any) -> tuple[list[Any], dict[str, Any]]:
        before = jax.tree.unflatten(structure, leaves)
        after, metrics = update(before, ef.TokenBatch(tokens), optimizer)
        return jax.tree.leaves(after), metrics

    held = [leaves]

    def call() -> dict[str, Any]:
        held[0], metrics = step(held[0], batch.tokens)
        return metrics

    return call


def filtered(state: Any, batch: Any, optimizer: Any) -> Callable[[], dict[str, Any]]:
    """`eqx.filter_jit` from state to state."""
    import equinox as eqx

    @eqx.filter_jit(donate="all-except-first")
    def step(batch: Any, state: Any) -> tuple[Any, dict[str, Any]]:
        return update(state, batch, optimizer)

    held = [state]

    def call() -> dict[str, Any]:
        held[0], metrics = step(batch, held[0])
        return metrics

    return call


if __name__ == "__main__":
    main()
