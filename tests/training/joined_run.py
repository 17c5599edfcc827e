"""One of two processes, of two devices each, that train a model together.

    python joined_run.py DIRECTORY RANK PORT [STEP]

With STEP, both kill themselves when the batch of that step is asked for.
"""

import os
import signal
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax

import eqxformer as ef
from tests.training.joined_settings import BATCHES, settings


def main(directory: Path, rank: int, port: str, last: int | None) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)

    def batches(step: int) -> ef.TokenBatch:
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return BATCHES(step)

    placement = ef.Placement(ef.make_mesh("fsdp=4"))
    trainer = ef.Trainer(
        **settings(placement.init),
        batches=batches,
        placement=placement,
        callbacks=[
            ef.MetricsFile(directory / "metrics.jsonl"),
            ef.Save(lambda model: ef.save(model, directory / "model")),
        ],
        checkpoints=ef.Checkpoints(directory / "checkpoints", every=3),
    )
    trainer.fit()


if __name__ == "__main__":
    place, rank, port, *last = sys.argv[1:]
    main(Path(place), int(rank), port, int(last[0]) if last else None)
