"""Two processes on this machine that train together, are killed, and go on."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

import eqxformer as ef
from eqxformer.training.callbacks import Callback
from eqxformer.training.processes import told_by_first
from tests.helpers.compare import assert_close
from tests.training.joined_settings import BATCHES, STEPS, settings

ROOT = Path(__file__).parents[2]


def together(directory, *last):
    """Exit codes and complaints of both processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    directory.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.training.joined_run", str(directory)]
    both = [
        subprocess.Popen(
            [*command, rank, port, *map(str, last)],
            cwd=ROOT,
            env={**os.environ, "EQXFORMER_CHECKS": "0"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        complaints = [process.communicate(timeout=300)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    return [process.returncode for process in both], "\n".join(complaints)


class Losses(Callback):
    def __init__(self):
        self.values = []

    def recorded(self, record):
        self.values.append(record.values["loss"])


def test_two_processes_that_are_killed_and_go_on_are_one_device(tmp_path):
    directory = tmp_path / "run"
    assert together(directory, 5)[0] == [-9, -9]
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == ["3"]
    codes, complaints = together(directory)
    assert codes == [0, 0], complaints
    losses = Losses()
    alone = ef.Trainer(
        **settings(lambda build, key: build(key)), batches=BATCHES, callbacks=[losses]
    ).fit()
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    np.testing.assert_allclose([line["loss"] for line in lines], losses.values, rtol=1e-5)
    assert_close(ef.load(directory / "model"), alone.model, 1e-5)


def test_alone_what_the_first_finds_is_what_is_found():
    assert told_by_first(lambda: {"a": 1}) == {"a": 1}
