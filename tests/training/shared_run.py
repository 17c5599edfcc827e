"""A process that brings its share of every batch to a trainer, and says what came out.

python -m tests.training.shared_run RANK COUNT PORT
"""

import json
import sys

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


if __name__ == "__main__":
    rank, count, port = map(int, sys.argv[1:])
    jax.distributed.initialize(
        f"127.0.0.1:{port}", count, rank, cluster_detection_method="deactivate"
    )
    print(json.dumps(outcome(ef.Share.of_this_process(), f"data={len(jax.devices())}")))
