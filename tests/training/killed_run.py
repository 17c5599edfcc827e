"""A training run in a process of its own, which a test kills at moments of its choosing.

    python killed_run.py DIRECTORY [MOMENT]

MOMENT says when the process kills itself: `step:9` within the 9th step, which sums up the gradients
of several parts of its batch; `checkpoint:2` while the second checkpoint is being written. At its
end it prints a digest of the last state.
"""

import hashlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np

import eqxformer as ef
from eqxformer.training.checkpoints import named

STEPS, EVERY = 24, 4


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def watch(directory: Path, number: int) -> None:
    """Kills the process when the `number`-th checkpoint is begun and not complete."""
    seen: set[str] = set()
    while True:
        names = os.listdir(directory) if directory.exists() else []
        seen |= {name for name in names if "tmp" in name}
        if len(seen) >= number and any("tmp" in name for name in os.listdir(directory)):
            die()
        time.sleep(1e-4)


def main(directory: Path, moment: str) -> None:
    kind, _, number = moment.partition(":")
    if kind == "checkpoint":
        watched = (directory / "checkpoints", int(number))
        threading.Thread(target=watch, args=watched, daemon=True).start()

    config = ef.families.gpt(vocab=7, dim=8, layers=1, heads=2, context=6).edit(
        "blocks.*.*_residual", dropout=0.2
    )
    tokens = np.random.default_rng(0).integers(0, 7, 50).astype(np.int32)  # 8 windows an epoch
    cut = ef.Epochs(length=6, batch=6).build(tokens, seed=3)

    def batches(step: int) -> ef.TokenBatch:
        if kind == "step" and step + 1 == int(number):
            threading.Timer(3e-4, die).start()
        return cut(step)

    optimizer = ef.Averaged(ef.AdamW(ef.WarmupCosine(peak=1e-2, warmup=5)), decay=0.9)
    trainer = ef.Trainer(
        model=config.build(key=jax.random.key(0)),
        batches=batches,
        optimizer=optimizer.build(STEPS),
        steps=STEPS,
        key=jax.random.key(1),
        microbatch=2,
        callbacks=[
            ef.MetricsFile(directory / "metrics.jsonl"),
            ef.Validate([cut(0)], every=3),
            ef.SaveBest(lambda model: ef.save(model, directory / "best")),
        ],
        checkpoints=ef.Checkpoints(directory / "checkpoints", every=EVERY),
    )
    state = trainer.fit()
    digest = hashlib.sha256()
    for name, array in sorted(named(state).items()):
        digest.update(name.encode() + np.asarray(array).tobytes())
    print(digest.hexdigest())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
