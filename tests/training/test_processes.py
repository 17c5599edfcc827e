"""Two processes on this machine that train together, are killed and stopped, and go on."""

import json
import os
import signal
import socket
import time

import numpy as np
import pytest

import eqxformer as ef
from eqxformer.cli.commands import run
from eqxformer.training.processes import all_or_none, check_alike, join, told_by_first
from eqxformer.training.recipes import mlm
from tests.helpers.compare import assert_close
from tests.helpers.forks import Nursery
from tests.training.shared_run import outcome

TEXT = " ".join(f"{number} times" for number in range(300))
STEPS = 45
TINY = mlm.model(len(set(TEXT)) + mlm.SPECIAL, dim=8, layers=1, heads=2, hidden=8)
SETTINGS = {
    "model": json.dumps(TINY.to_dict()),
    "optimizer": json.dumps(ef.SGD(0.05, momentum=0.9).to_dict()),
    "data.batch": "4",
    "checkpoint_every": "5",
    "validate_every": "15",
}
OPTIONS = [f"--steps={STEPS}", *(f"--set={path}={value}" for path, value in SETTINGS.items())]


def slurm(rank, port):
    """What Slurm tells a task of a job on one machine."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_STEP_NUM_NODES": "1",
        "JAX_COORDINATOR_PORT": str(port),
    }


def free_port():
    """One that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("processes")
    (place / "text.txt").write_text(TEXT)
    return place


@pytest.fixture(scope="module")
def nursery(place):
    """Of processes of two devices each."""
    nursery = Nursery(
        place,
        *("eqxformer.cli.train", "orbax.checkpoint", "matplotlib.figure", "grain"),
        EQXFORMER_CHECKS="0",
        XLA_FLAGS=f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
        JAX_COMPILATION_CACHE_DIR=str(place / "cache"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # as in this process
    )
    yield nursery
    nursery.close()


class Together:
    """Two processes at a time."""

    def __init__(self, *both):
        self.both = both

    def until(self, there):
        """Waits until something is there, or one of them is not."""
        while not there() and all(process.poll() is None for process in self.both):
            time.sleep(0.005)

    def ended(self):
        """Exit codes, and what the two wrote to both ends."""
        try:
            written = [process.communicate() for process in self.both]
        finally:
            for process in self.both:
                process.kill()
        codes = [process.returncode for process in self.both]
        return codes, [out for out, _ in written], [err for _, err in written]


@pytest.fixture
def train(nursery):
    """`eqxformer train` by two processes."""

    def train(*arguments, where=None, second=()):
        port = free_port()
        return Together(
            *[
                nursery.start(
                    *("eqxformer.cli", "train", *arguments, "--mesh=fsdp=4"),
                    f"--processes={where or f'{rank}/2@127.0.0.1:{port}'}",
                    *more,
                    **slurm(rank, port),
                )
                for rank, more in enumerate(((), second))
            ]
        )

    return train


def numbers(directory, name):
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def test_two_processes_that_are_killed_and_stopped_go_on_as_one_device_would(place, train):
    together, alone = place / "together", place / "alone"
    begin = ("mlm", "--data", place / "text.txt", *OPTIONS)

    killed = train(*begin, "--out", together)
    killed.until((together / "checkpoints" / "5").exists)
    for process in killed.both:
        process.kill()
    assert killed.ended()[0] == [-9, -9]

    stopped = train("--out", together, "--resume")
    stopped.until((together / "checkpoints" / "10").exists)
    stopped.both[1].send_signal(signal.SIGTERM)
    codes, outs, errs = stopped.ended()
    assert codes == [143, 143], errs
    last = max(numbers(together, "loss"))
    assert 10 <= last < STEPS
    assert f"the model of step {last} is saved" in outs[0]
    assert (together / "checkpoints" / str(last)).is_dir()

    codes, outs, errs = train("--out", together, "--resume").ended()
    assert codes == [0, 0], errs
    assert f"Going on from step {last}." in outs[0]
    assert "Validation loss" in outs[0]
    assert "step" not in outs[1]  # the first one speaks for all

    assert run(["train", *map(str, begin), "--out", str(alone)]) == 0
    for name in ("loss", "validation_loss"):
        found, wanted = numbers(together, name), numbers(alone, name)
        assert list(found) == list(wanted)
        np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-5)
    assert_close(ef.load(together), ef.load(alone), 1e-5)


def test_processes_that_bring_shares_of_each_batch_train_on_all_of_it_and_go_on(tmp_path, nursery):
    port, there = free_port(), tmp_path / "checkpoints"
    codes, outs, errs = Together(
        *[nursery.start("tests.training.shared_run", rank, 2, port, there) for rank in range(2)]
    ).ended()
    assert codes == [0, 0], errs
    alone = outcome(ef.Share(), "data=8")
    for out in outs:
        found = json.loads(out.splitlines()[-1])
        assert found["tokens"] == alone["tokens"]
        np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-6)
        np.testing.assert_allclose(found["weights"], alone["weights"], rtol=1e-6, atol=1e-7)
        assert len(found["parts"][0]) == 5
        assert found["parts"][0] == found["parts"][1]


def test_processes_of_slurm_find_each_other_and_are_refused_where_they_are_told_different_things(
    place, train
):
    begin = ("mlm", "--data", place / "text.txt", *OPTIONS, "--out", place / "none")
    codes, _, errs = train(*begin, where="auto", second=["--seed=1"]).ended()
    assert codes == [2, 2], errs
    assert "first -> this one: experiment.seed: 0 -> 1" in errs[1]
    assert "Process 1 was asked for another thing than the first" in errs[0]
    assert not (place / "none").exists()


@pytest.mark.parametrize("where", ["2/2@host0:1234", "0/2", "first", "0/2@host0"])
def test_processes_are_spelled_out(where):
    with pytest.raises(ValueError, match="RANK/COUNT@HOST:PORT"):
        join(where)


def test_processes_need_a_mesh(capsys):
    assert run(["train", "--processes", "0/2@127.0.0.1:1"]) == 2
    assert "--mesh" in capsys.readouterr().err


def test_alone_what_the_first_finds_is_what_is_found():
    assert told_by_first(lambda: {"a": 1}) == {"a": 1}
    check_alike({"a": (1, 2)})
    with pytest.raises(KeyError), all_or_none():
        {}["a"]
