"""Runs that go on where they ended."""

import contextlib
import errno
import json
import os
import shutil
import signal

import pytest

import eqxformer as ef
from eqxformer.cli.train import _told
from eqxformer.training import run_directory
from eqxformer.training.checkpoints import Checkpoints
from eqxformer.training.recipes.language_model import TextExperiment
from eqxformer.training.run_directory import RunDirectory
from tests.cli.conftest import SMALL, TEXT
from tests.cli.test_mistakes import refused


def log(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    times = ("seconds", "tokens_per_second", "flops_per_second", "memory_bytes")
    return [{k: v for k, v in line.items() if k not in times} for line in lines]


@pytest.fixture
def copied(here, trained):
    """A run that is over; it learned from `text.txt`, which lies where it lay."""
    return shutil.copytree(trained / "text", here / "run")


def end_at_the_second_save(patch):
    """Has a run be told to end when it saves its model for the first time after a step."""

    def save(self, model, kept=RunDirectory.save):
        kept(self, model)
        saved.append(model)
        if len(saved) == 2:  # after the one before the first step
            os.kill(os.getpid(), signal.SIGTERM)

    saved = []
    patch.setattr(RunDirectory, "save", save)


def test_a_run_that_sigterm_ended_goes_on_as_if_it_had_not(command, here, trained, monkeypatch):
    data = ["--data", trained / "text.txt", "--set", "prompt=7 times"]
    end_at_the_second_save(monkeypatch)
    code, out, err = command("train", *SMALL, *data, "--out", here / "run")
    assert (code, err) == (128 + signal.SIGTERM, "")
    assert f"Go on: eqxformer train --out {here / 'run'} --resume" in out
    assert [line["step"] for line in log(here / "run") if "loss" in line] == [1, 2, 3, 4]
    monkeypatch.undo()
    code, out, err = command("train", "--out", here / "run", "--resume")
    assert (code, err) == (0, "")
    assert "Going on from step 4." in out
    assert log(here / "run") == log(trained / "text")
    for name in ("model.safetensors", "best/model.safetensors"):
        assert (here / "run" / name).read_bytes() == (trained / "text" / name).read_bytes()


@pytest.mark.parametrize("write", range(4))
def test_a_run_that_could_not_be_made_leaves_nothing_and_can_be_begun_again(
    command, here, trained, monkeypatch, write
):
    """The disk is full at the settings, the tokenizer, the first model, or the last rename."""
    names = ("run_directory.write_text", "run_directory.write_text", "run_directory.save")
    times = []

    def full(*_, kept=run_directory.write_text):
        times.append(1)
        if len(times) > write or write > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        kept(*_)

    name = "eqxformer.checkpoints._replacing._put" if write == 3 else names[write]
    monkeypatch.setattr(name if write == 3 else f"eqxformer.training.{name}", full)
    begin = ["train", "text", "--data", trained / "text.txt", *SMALL, "--steps=1"]
    begin += ["--out", here / "new", "--resume"]
    assert command(*begin)[0] == 2
    assert list(here.iterdir()) == []
    monkeypatch.undo()
    assert command(*begin)[0] == 0
    assert json.loads((here / "new/run.json").read_text())["experiment"]["steps"] == 1


def test_a_run_goes_on_with_its_data_under_another_name(command, here, copied):
    (here / "data").mkdir()
    shutil.copy(here.parent / "text.txt", here / "data/other.txt")
    begun = json.loads((copied / "run.json").read_text())
    assert begun["data"]["name"] == "text.txt"
    code, _, err = command("train", "--out", copied, "--resume", "--data", here / "data/other.txt")
    assert (code, err) == (0, "")


def test_a_run_that_is_over_is_only_evaluated_again(command, copied, trained):
    code, out, err = command("train", "--out", copied, "--resume")
    assert (code, err) == (0, "")
    assert "Validation loss" in out
    assert log(copied) == log(trained / "text")


def test_without_a_run_resume_begins_one(command, here, trained):
    options = ["--data", trained / "text.txt", *SMALL, "--steps=1", "--out", here / "new"]
    assert command("train", "text", *options, "--resume")[0] == 0
    assert log(here / "new")


def test_a_run_may_get_more_steps_where_its_rate_does_not_end(command, here, trained):
    steady = ["--set", "optimizer.learning_rate=0.01", "--data", trained / "text.txt"]
    for name, steps in (("longer", 2), ("straight", 3)):
        options = [*SMALL, *steady, f"--steps={steps}", "--out", here / name]
        assert command("train", *options)[0] == 0
    longer = ["train", "--out", here / "longer", "--resume"]
    code, out, _ = command(*longer, "--steps=3")
    assert (code, "Going on from step 2." in out) == (0, True)
    for name in ("model.safetensors", "best/model.safetensors"):
        assert (here / "longer" / name).read_bytes() == (here / "straight" / name).read_bytes()
    losses = [[x for x in log(here / run) if "loss" in x] for run in ("longer", "straight")]
    assert losses[0] == losses[1]
    assert json.loads((here / "longer/run.json").read_text())["experiment"]["steps"] == 3
    line = refused(command, here, *longer, "--steps=2")
    assert "steps: 3 -> 2, and there can only be more of them" in line
    with contextlib.closing(Checkpoints(here / "longer/checkpoints", every=1).open()):
        assert "Another process is training" in command(*longer, "--steps=9")[2]
    assert json.loads((here / "longer/run.json").read_text())["experiment"]["steps"] == 3


def test_a_run_goes_on_whose_schedule_was_once_thought_to_end_with_it(
    command, here, trained, monkeypatch
):
    rate = json.dumps({"type": "WarmupStableDecay", "peak": 0.01})
    steady = ["--set", f"optimizer.learning_rate={rate}", "--data", trained / "text.txt"]
    with monkeypatch.context() as patch:
        patch.setattr(ef.WarmupStableDecay, "ends", True)
        assert command("train", *SMALL, *steady, "--steps=2", "--out", here / "run")[0] == 0
    code, out, err = command("train", "--out", here / "run", "--resume", "--steps=3")
    assert (code, "Going on from step 2." in out) == (0, True), err


def test_a_run_that_stopped_early_goes_on_without_patience(command, here, trained, monkeypatch):
    """Also from a checkpoint of when a run was thought to be another one with another patience."""
    still = ["--set", "optimizer.learning_rate.peak=0", "--set", "validate_every=1"]
    still += ["--set", "patience=1", "--data", trained / "text.txt", "--out", here / "run"]

    def once(self, kept=TextExperiment.identity):
        return {**kept(self), "patience": self.patience}

    with monkeypatch.context() as patch:
        patch.setattr(TextExperiment, "identity", once)
        code, out, err = command("train", *SMALL, "--steps=4", *still)
    assert (code, err) == (0, "")
    assert "Stopped after step 2" in out
    again = ["train", "--out", here / "run", "--resume"]
    assert "Stopped after step 2" in command(*again)[1]
    code, out, err = command(*again, "--set", "patience=null")
    assert (code, err) == (0, "")
    assert "Stopped" not in out
    assert [line["step"] for line in log(here / "run") if "loss" in line] == [1, 2, 3, 4]


def test_what_failed_beside_an_error_is_told_with_it():
    error = ValueError("The loss is NaN.")
    assert _told(error) == "The loss is NaN."
    error.add_note("Then the checkpoints could not be closed.")
    assert _told(error) == "The loss is NaN. Then the checkpoints could not be closed."


CHANGES = {
    "optimizer.learning_rate.peak: ": ["--set", "optimizer.learning_rate.peak=0.5"],
    "steps: 6 -> 7": ["--steps", "7"],
    "model.dim: 16 -> 32": ["--set", "model.dim=32"],
    "seed: 0 -> 1": ["--seed", "1"],
}


@pytest.mark.parametrize("difference", CHANGES)
def test_a_changed_run_is_refused_with_what_changed(command, here, copied, difference):
    line = refused(command, here, "train", "--out", copied, "--resume", *CHANGES[difference])
    assert "cannot go on changed; then -> now: " in line
    assert difference in line


def test_what_is_only_shown_may_change(command, copied):
    shown = ["--set", "sample_every=2", "--set", "prompt=8 times"]
    assert command("train", "--out", copied, "--resume", *shown)[0] == 0


def test_changed_data_is_refused(command, here, copied):
    (here / "other.txt").write_text(TEXT.replace("times", "tames"))
    data = ["--data", here / "other.txt"]
    line = refused(command, here, "train", "--out", copied, "--resume", *data)
    assert "data.sha256: " in line


def test_another_recipe_and_no_directory_are_refused(command, here, copied):
    line = refused(command, here, "train", "vpj", "--out", copied, "--resume")
    assert "is of the recipe `text`; got `vpj`" in line
    assert "`--resume` needs `--out" in refused(command, here, "train", "--resume")
    (here / "empty").mkdir()
    assert "has no run.json" in refused(command, here, "train", "--out", here / "empty", "--resume")
