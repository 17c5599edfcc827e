"""Does the loss of pre-training fall as it does in plain PyTorch?

    python benchmarks/pretraining.py                      mlm and denoise, 200 steps each
    python benchmarks/pretraining.py --recipes mlm --steps 800

The recipes `mlm` and `denoise` of `eqxformer train`, beside the same models in plain PyTorch
(`peers/torch_pretraining.py`): the same weights to begin with, the same batches, the same AdamW and
learning rates, on the CPU. Nothing is timed. The two losses of a step differ by rounding at first;
training makes every difference larger, so that later on two runs are alike, and no longer equal.
"""

import argparse
import os
import sys
from typing import Any

import numpy as np

from eqxformer.bench import harness

RECIPES = ("mlm", "denoise")
EARLY = 30  # steps in which the losses must agree
TOLERANCE = 1e-4  # relative, in these steps; rounding on a CPU is 1e-5 or less
SHOWN = 10  # steps that are printed


def main() -> None:
    """Trains both of every recipe, shows their losses and saves all of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    harness.needs("torch")
    results = {name: compare(name, options.steps) for name in options.recipes}
    print(f"\nwritten to {harness.write(__file__, 'pretraining', results)}")


def compare(name: str, steps: int) -> dict[str, Any]:
    """The losses of a recipe, ours and PyTorch's."""
    from peers import torch_pretraining as peer

    import eqxformer as ef
    from eqxformer.training.recipes import recipe

    task = recipe(name).prepare(None)
    experiment = task.experiment.edit(steps=steps)
    settings, batches = experiment.optimizer, task.batches(experiment)
    model = experiment.init()
    weights = {path: np.array(array) for path, array in ef.named_arrays(model).items()}
    theirs = peer.twin(name, experiment.model, weights)
    rate = settings.learning_rate.build(steps)
    their_step = peer.training(theirs, settings, batches, lambda number: float(rate(number)))

    optimizer = settings.build(steps)
    state = ef.TrainState.create(model, optimizer, key=experiment.key("steps"))
    step = ef.make_step(experiment.loss, optimizer)
    ours, others = [], []
    print(f"\n{name}: {ef.count(model):,} parameters\n{'step':>8}{'eqxformer':>12}{'torch':>12}")
    for number in range(steps):
        state, metrics = step(state, batches(number))
        ours.append(float(metrics["loss"]))
        others.append(their_step(number))
        if number % max(1, steps // SHOWN) == 0 or number == steps - 1:
            print(f"{number + 1:>8}{ours[-1]:>12.6f}{others[-1]:>12.6f}", flush=True)
    return judged(name, ours, others)


def judged(name: str, ours: list[float], others: list[float]) -> dict[str, Any]:
    """The losses, and how far they are apart; refuses to save what differs from the start."""
    apart = [abs(a - b) / b for a, b in zip(ours, others, strict=True)]
    early, last = max(apart[:EARLY]), min(len(ours), EARLY)
    print(f"  apart by {early:.1e} in the first {EARLY} steps, by {max(apart):.1e} in all of them")
    if early > TOLERANCE:
        sys.exit(f"{name}: the losses of the first {EARLY} steps differ by {early:.1e}.")
    return {
        "steps": len(ours),
        "first_loss": ours[0],
        "last_loss": sum(ours[-last:]) / last,
        "torch_last_loss": sum(others[-last:]) / last,
        "early_difference": early,
        "largest_difference": max(apart),
        "losses": {"eqxformer": ours, "torch": others},
    }


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
