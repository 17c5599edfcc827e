"""Checkpoints: what is written is what is read, and what is damaged is noticed and named."""

import contextlib
import errno
import functools
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.training.callbacks import Callback
from eqxformer.training.checkpoints import (
    CheckpointNotWritten,
    Checkpoints,
    DamagedCheckpoints,
    named,
)
from eqxformer.training.trainer import NonFiniteLoss
from tests.helpers import compare
from tests.training.tiny import Noisy

TOKENS = np.random.default_rng(0).integers(0, 5, 200).astype(np.int32)
BATCHES = ef.RandomWindows(length=6, batch=3).build(TOKENS)


@functools.cache
def model():
    return Noisy(key=jax.random.key(0))


def trainer(directory=None, *callbacks, steps=6, every=2, optimizer=None, identity=None, **options):
    told = options.pop("warn", None)
    checkpoints = None
    if directory is not None:
        checkpoints = Checkpoints(directory, every=every, identity=identity, warn=told)
    options = {"model": model(), "batches": BATCHES, **options}
    optimizer = (optimizer or ef.AdamW(1e-2)).build(steps)
    return ef.Trainer(
        optimizer=optimizer,
        steps=steps,
        key=jax.random.key(1),
        callbacks=callbacks,
        checkpoints=checkpoints,
        **options,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Checkpoints of steps 4 and 6 of a run of 6, and its last state; copy them before changing."""
    directory = tmp_path_factory.mktemp("written") / "checkpoints"
    return directory, trainer(directory).fit()


@pytest.fixture
def copied(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / "checkpoints"), written[1]


def same_bits(state, other):
    """Whether two states are the same to the bit, random keys too."""
    return compare.same_bits(named(state), named(other))


def refused(step):
    raise AssertionError(step)


refused.fingerprint = BATCHES.fingerprint


class Stop(Callback):
    """Ends training after a step, as a scheduler does."""

    def __init__(self, step, *signals):
        self.every, self.signals = step, signals

    def reached(self, trainer):
        for each in self.signals:
            os.kill(os.getpid(), each)


def steps_in(directory):
    return sorted(int(path.name) for path in directory.iterdir())


def test_the_newest_two_are_kept(written):
    assert steps_in(written[0]) == [4, 6]


def test_a_run_in_two_parts_ends_with_the_bits_of_one(tmp_path, written):
    first = trainer(tmp_path / "checkpoints", Stop(3, signal.SIGTERM))
    assert first.fit().step == 4  # asked for after the third, when the fourth had not begun
    assert (first.signal, first.interrupted) == (signal.SIGTERM, True)
    assert steps_in(tmp_path / "checkpoints") == [2, 4]
    second = trainer(tmp_path / "checkpoints")
    assert same_bits(second.fit(), written[1])
    assert second.tokens == 6 * 18


def test_a_run_that_is_over_takes_no_further_step(copied):
    directory, last = copied
    assert same_bits(trainer(directory, batches=refused).fit(), last)


def test_no_array_of_a_new_state_is_kept_while_that_of_a_checkpoint_is_read(copied, monkeypatch):
    directory, last = copied
    size = sum(x.nbytes for x in named(last).values())
    there, held = [], sum(x.nbytes for x in jax.live_arrays())
    read = Checkpoints._read

    def watched(self, step, like):
        there.append(sum(x.nbytes for x in jax.live_arrays()) - held)
        return read(self, step, like)

    monkeypatch.setattr(Checkpoints, "_read", watched)
    resumed = trainer(directory, batches=refused)
    assert same_bits(resumed.fit(), last)
    assert len(there) == 1
    assert there[0] < 0.1 * size
    jax.block_until_ready(resumed.model)  # the original stays as it is


def test_without_checkpoints_fitting_begins_anew(tmp_path):
    assert trainer(tmp_path / "checkpoints", steps=1).fit().step == 1
    assert trainer(tmp_path / "others", steps=1).fit().step == 1


def restored(directory, like, **options):
    with contextlib.closing(Checkpoints(directory, every=2, **options).open()) as checkpoints:
        return checkpoints.restore(like)


def files_of(directory):
    """Every file of a checkpoint that holds something."""
    return [path for path in sorted(directory.rglob("*")) if path.is_file() and path.stat().st_size]


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_any_damage_is_noticed_named_and_passed_over(written, tmp_path):
    """Every file of the newest with a flipped bit, cut in half, or missing."""
    names = [path.relative_to(written[0] / "6") for path in files_of(written[0] / "6")]
    names = [name for name in names if len(name.parts) > 1 or name.name == "seal.json"]
    assert len(names) > 10
    directory = shutil.copytree(written[0], tmp_path / "checkpoints")
    for number, name in enumerate(names):
        damage = (flipped, truncated, os.unlink)[number % 3]
        damage(directory / "6" / name)
        told = []
        found = restored(directory, written[1], warn=told.append)
        assert (found.step, found.progress["step"]) == (4, 4)
        (message,) = told
        assert f"The checkpoint of step 6 is damaged: its file {name} " in message
        assert message.endswith("going on from step 4.")
        assert steps_in(directory) == [4]
        aside = tmp_path / "checkpoints-damaged" / "6"
        assert files_of(aside)
        shutil.rmtree(aside)
        shutil.copytree(written[0] / "6", directory / "6")
    assert same_bits(restored(directory, written[1]).state, written[1])


def test_where_all_are_damaged_training_does_not_begin_anew(copied):
    directory, _ = copied
    truncated(directory / "4" / "record" / "metadata")
    flipped(directory / "6" / "state" / "manifest.ocdbt")
    before = {path: path.read_bytes() for path in files_of(directory)}
    with pytest.raises(DamagedCheckpoints, match=r"(?s)step 6: its file st.*step 4: its file re"):
        trainer(directory).fit()
    assert {path: path.read_bytes() for path in files_of(directory)} == before


CHANGED = {
    'optimizer.1.count: "int32\\[\\]" -> nothing': {"optimizer": ef.SGD(0.1)},
    'model.embedding: "float32\\[5, 4\\]" -> "float32\\[5, 6\\]"': {
        "model": Noisy(dim=6, key=jax.random.key(0))
    },
    'data: nothing -> ."sha256": "abc"': {"identity": {"data": {"sha256": "abc"}}},
}


@pytest.mark.parametrize("difference", CHANGED)
def test_another_run_is_refused_with_what_differs(copied, difference):
    directory, _ = copied
    with pytest.raises(ValueError, match=f"(?s)are of another run.*{difference}"):
        trainer(directory, **CHANGED[difference]).fit()
    assert steps_in(directory) == [4, 6]


def test_two_links_to_a_directory_are_one(tmp_path):
    (tmp_path / "real").mkdir()
    for name in ("one", "other"):
        (tmp_path / name).symlink_to(tmp_path / "real")
    with (
        contextlib.closing(Checkpoints(tmp_path / "one", every=1).open()),
        pytest.raises(ValueError, match="Another process is training in"),
    ):
        Checkpoints(tmp_path / "other", every=1).open()


@pytest.mark.parametrize("why", ["mounted", "nothing may be written beside it"])
def test_a_directory_that_stands_alone_has_everything_inside(copied, tmp_path, monkeypatch, why):
    directory, last = copied
    flipped(directory / "6" / "state" / "manifest.ocdbt")
    if why == "mounted":
        monkeypatch.setattr(os.path, "ismount", lambda path: path == directory)
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    told = []
    assert same_bits(trainer(directory, warn=told.append).fit(), last)
    assert f"It is now `{directory / 'checkpoints-damaged' / '6'}`" in told[0]
    assert os.listdir(tmp_path) == ["checkpoints"]
    names = {"checkpoints-damaged", ".checkpoints.lock", "4", "6"}
    assert set(os.listdir(directory)) == names


def test_what_is_damaged_is_moved_to_another_file_system(copied, monkeypatch):
    directory, last = copied
    flipped(directory / "6" / "state" / "manifest.ocdbt")

    def crosses(source, target, *, kept=os.rename, **_):
        if "-damaged" in str(target):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        kept(source, target)

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, crosses)
    assert restored(directory, last, warn=lambda _: None).step == 4
    assert not (directory / "6").exists()
    assert files_of(directory.with_name("checkpoints-damaged") / "6")


def test_what_is_only_shown_may_be_another(tmp_path):
    directory = tmp_path / "checkpoints"
    then, now = ({"data": {"name": name, "sha256": "abc"}} for name in ("", "text.txt"))
    trainer(directory, identity=then, steps=2).fit()
    like = trainer(steps=2).fit()
    with pytest.raises(ValueError, match='data.name: "" -> "text.txt"'):
        restored(directory, like, identity=now)
    assert restored(directory, like, identity=now, only_shown=["data.name"]).step == 2


def test_a_directory_belongs_to_one_process(copied):
    directory, last = copied
    held = contextlib.closing(Checkpoints(directory, every=1).open())
    with held, pytest.raises(ValueError, match="Another process is training in"):
        trainer(directory).fit()
    assert same_bits(trainer(directory).fit(), last)


def poisoned(step):
    """Batches of which the sixth makes everything NaN."""
    batch = BATCHES(step)
    return ef.TokenBatch(batch.tokens, np.full((3, 7), np.nan if step == 5 else 1.0, np.float32))


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(tmp_path):
    run = trainer(tmp_path / "checkpoints", steps=9, every=1, batches=poisoned)
    with pytest.raises(NonFiniteLoss, match="Step 6"):
        run.fit()
    assert steps_in(tmp_path / "checkpoints") == [4, 5]
    found = restored(tmp_path / "checkpoints", trainer().fit())
    assert (found.step, bool(jnp.isfinite(found.state.model.output).all())) == (5, True)


def test_a_step_that_is_not_finite_can_be_skipped_and_changes_nothing():
    values = []

    class Log(Callback):
        def recorded(self, record):
            values.append(record.values)

    state = trainer(None, Log(), steps=7, batches=poisoned, skips=1).fit()
    assert [value["skipped"] for value in values] == [0, 0, 0, 0, 0, 1, 0]
    assert np.isfinite(values[6]["loss"])
    five = trainer(None, steps=7, batches=poisoned, skips=1)
    five.steps = 5
    before = five.fit()
    six = trainer(None, steps=7, batches=poisoned, skips=1)
    six.steps = 6
    assert same_bits((six.fit().model, six.state.optimizer), (before.model, before.optimizer))
    assert state.step == 7


def test_too_many_steps_that_are_not_finite_end_training():
    def always(step):
        return ef.TokenBatch(BATCHES(step).tokens, np.full((3, 7), np.nan, np.float32))

    with pytest.raises(NonFiniteLoss, match="Step 3 is not finite"):
        trainer(None, steps=9, batches=always, skips=2).fit()


class Wreck(Callback):
    """Does something to the directory after the third step."""

    every = 3

    def __init__(self, wreck):
        self.wreck = wreck

    def reached(self, trainer):
        if trainer.step == 3:
            self.wreck()


def test_a_directory_that_is_gone_is_an_error_that_says_so(tmp_path):
    directory = tmp_path / "checkpoints"

    def remove():
        run.checkpoints.wait()
        shutil.rmtree(directory)

    run = trainer(directory, Wreck(remove), steps=20, every=2)
    with pytest.raises(CheckpointNotWritten, match="the directory is not there any more") as error:
        run.fit()
    assert error.value.last is None


def test_a_place_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/checkpoints` cannot be used: Not a directory"):
        trainer(tmp_path / "file" / "checkpoints", batches=refused).fit()


def test_a_full_disk_leaves_the_last_checkpoint_whole(copied, monkeypatch):
    directory, last = copied

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def write(checkpoints):
        checkpoints.save(7, last, {"step": 7})
        checkpoints.wait()

    monkeypatch.setattr("eqxformer.training.checkpoints.seal", full)
    held = contextlib.closing(Checkpoints(directory, every=1).open())
    with held as checkpoints, pytest.raises(CheckpointNotWritten) as error:
        write(checkpoints)
    message = str(error.value)
    assert "No space left on device; that of step 6 is complete" in message
    assert message.count("A checkpoint could not be written") == 1
    assert error.value.last == 6
    assert restored(directory, last).step == 6


def test_what_is_wrong_with_the_checkpoint_before_is_said_once(copied, monkeypatch):
    directory, last = copied

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def write(checkpoints):
        for step in (7, 8):
            checkpoints.save(step, last, {"step": step})

    monkeypatch.setattr("eqxformer.training.checkpoints.seal", full)
    held = contextlib.closing(Checkpoints(directory, every=1).open())
    with held as checkpoints, pytest.raises(CheckpointNotWritten) as error:
        write(checkpoints)
    message = str(error.value)
    assert message.count("A checkpoint could not be written") == message.count("Make room") == 1


@pytest.mark.parametrize("options", [{"every": 0}, {"every": 1, "keep": 1}])
def test_numbers_that_make_no_sense_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match="must be at least"):
        Checkpoints(tmp_path, **options)
