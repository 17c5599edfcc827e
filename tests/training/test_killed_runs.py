"""Runs that are killed, again and again, and end with the same bits as one that is not."""

import json
import random
import signal
import time

import pytest

from tests.helpers.forks import Nursery
from tests.training import killed_run


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    place = tmp_path_factory.mktemp("nursery")
    nursery = Nursery(
        place,
        *("eqxformer.training.trainer", "orbax.checkpoint"),
        EQXFORMER_CHECKS="0",
        JAX_COMPILATION_CACHE_DIR=str(place / "cache"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def begin(nursery):
    """Begins a run that kills itself at a moment, if one is given."""

    def begin(directory, moment=""):
        directory.mkdir(exist_ok=True)
        return nursery.start("tests.training.killed_run", directory, moment)

    return begin


def ended(process):
    """What it printed last, and whether it came to its end."""
    out, _ = process.communicate()
    return out.strip(), process.returncode


def log(directory):
    """Every line of numbers but the time, which no run repeats."""
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, begin):
    directory = tmp_path_factory.mktemp("runs") / "undisturbed"
    digest, code = ended(begin(directory))
    assert code == 0
    return directory, digest


def test_a_run_that_is_killed_at_any_moment_ends_with_the_same_bits(undisturbed, begin):
    """Within a step, within a checkpoint, at any other time; in the second epoch and later."""
    reference, digest = undisturbed
    directory = reference.parent / "killed"
    for moment in ("step:11", "checkpoint:2"):
        _, code = ended(begin(directory, moment))
        assert code == -9, f"{moment} did not come"
    seed = random.randrange(10**6)
    print(f"killed at moments drawn from {seed}")  # shown where the test fails
    process = begin(directory)
    time.sleep(random.Random(seed).uniform(0.2, 3.0))
    process.kill()
    process.communicate()
    assert ended(begin(directory)) == (digest, 0)
    assert log(directory) == log(reference)
    steps = [line["step"] for line in log(directory) if "loss" in line]
    assert steps == list(range(1, killed_run.STEPS + 1))
    best = "best/model.safetensors"
    assert (directory / best).read_bytes() == (reference / best).read_bytes()


def test_a_second_sigterm_ends_the_process_at_once(nursery):
    assert ended(nursery.start("tests.training.twice_stopped")) == ("15", -signal.SIGTERM)
