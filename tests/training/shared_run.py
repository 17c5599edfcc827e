"""A process that brings its share of every batch to a trainer, and says what came out.

python -m tests.training.shared_run RANK COUNT PORT DIRECTORY
"""

import json
import sys

import grain
import jax
import numpy as np

import eqxformer as ef
from tests.training.tiny import Bigram

TOKENS = np.random.default_rng(0).integers(0, 5, 200).astype(np.int32)
WINDOWS = ef.RandomWindows(length=6, batch=8)


def outcome(share: ef.Share, mesh: str) -> dict[str, object]:
    """The losses, the tokens seen, and the weights after five steps."""
    losses = []

    class Log(ef.Callback):
        def recorded(self, record: ef.Record) -> None:
            losses.append(record.values["loss"])

    trainer = ef.Trainer(
        Bigram(key=jax.random.key(0)),
        WINDOWS.build(TOKENS, share=share),
        ef.SGD(0.5).build(5),
        5,
        key=jax.random.key(1),
        callbacks=[Log()],
        placement=ef.Placement(ef.make_mesh(mesh)),
    )
    weights = np.asarray(trainer.fit().model.output.addressable_data(0))
    return {"losses": losses, "tokens": trainer.tokens, "weights": weights.tolist()}


def in_two_parts(share: ef.Share, mesh: str, directory: str) -> list[list[float]]:
    """The losses of a run in one piece, and of one that went on from a checkpoint in the middle.

    Each share leaves out other rows, so that their iterators do not stand at the same number.
    """
    rows = grain.MapDataset.range(180)[share.index :: share.count]
    kept = rows.filter(lambda n: n % 3 == 0 or share.index == 0).map(lambda n: TOKENS[n : n + 7])
    data = kept.to_iter_dataset().batch(4, batch_fn=lambda rows: ef.TokenBatch(np.stack(rows)))
    losses: list[list[float]] = [[], []]

    class Log(ef.Callback):
        def __init__(self, number: int) -> None:
            self.losses = losses[number]

        def recorded(self, record: ef.Record) -> None:
            self.losses.append(record.values["loss"])

    def fit(number: int, steps: int, checkpoints: ef.Checkpoints | None = None) -> None:
        ef.Trainer(
            Bigram(key=jax.random.key(0)),
            ef.feed(data, shares=share.count),
            ef.SGD(0.5).build(5),
            steps,
            key=jax.random.key(1),
            callbacks=[Log(number)],
            checkpoints=checkpoints,
            placement=ef.Placement(ef.make_mesh(mesh)),
        ).fit()

    fit(0, 5)
    for steps in (3, 5):
        fit(1, steps, ef.Checkpoints(directory, every=9))
    return losses


if __name__ == "__main__":
    rank, count, port = map(int, sys.argv[1:4])
    jax.distributed.initialize(
        f"127.0.0.1:{port}", count, rank, cluster_detection_method="deactivate"
    )
    share, mesh = ef.Share.of_this_process(), f"data={len(jax.devices())}"
    parts = in_two_parts(share, mesh, sys.argv[4])
    print(json.dumps({**outcome(share, mesh), "parts": parts}))
