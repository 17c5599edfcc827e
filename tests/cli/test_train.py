import dataclasses
import json
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.checkpoints.native import load
from eqxformer.cli.beginning import default_directory
from eqxformer.cli.settings import edited
from eqxformer.training.recipes.language_model import TextExperiment
from eqxformer.training.recipes.rot13 import Rot13
from eqxformer.training.trainer import Trainer
from tests.cli.conftest import SMALL
from tests.helpers.models import logits


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_prints_what_it_does(trained):
    out = (trained / "text.out").read_text()
    assert re.search(r"embedding\.tokens\.weight +vocab=16 dim=16", out)
    assert "text.txt: 2,889 characters, 16 different; 2,601 to learn from, the last 288" in out
    assert "6 steps of 2 x 64 tokens, 768 tokens in all" in out
    assert "optimizer  AdamW(" in out
    assert f"run        {trained / 'text'}" in out
    assert len(re.findall(r"step +[36]  loss \d\.\d+  validation loss \d\.\d+", out)) == 2
    assert re.search(r"Validation loss \d\.\d{4} nats per character, over the whole", out)
    assert f"Next: eqxformer generate {trained / 'text'} --prompt '7 times'" in out


def test_samples_are_shown_at_intervals_and_at_the_end(trained):
    out = (trained / "text.out").read_text()
    assert len(re.findall("^7 times", out, re.MULTILINE)) == 3


def test_a_run_leaves_everything_behind(trained):
    assert {path.name for path in (trained / "text").iterdir()} == {
        "run.json",
        "tokenizer.json",
        "config.json",
        "model.safetensors",
        "metrics.jsonl",
        "loss.png",
        "best",
        "checkpoints",
        ".checkpoints.lock",
    }
    assert (trained / "text/loss.png").read_bytes().startswith(b"\x89PNG")


def test_output_that_is_no_terminal_has_no_control_characters(trained):
    out = (trained / "rot13.out").read_text()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out)
    assert 20 <= len(re.findall(r"^step +\d+ of 40  loss", out, re.MULTILINE)) <= 21


def test_rot13_shows_translations_and_says_what_is_right(trained):
    out = (trained / "rot13.out").read_text()
    assert re.search(r"^\d+ of 1,000 unseen words are exact", out, re.MULTILINE)
    for word, right in {"hey": "url", "there": "gurer", "ma": "zn", "dood": "qbbq"}.items():
        assert re.search(rf"^{word} -> ({right}|.*  \(right: {right}\))$", out, re.MULTILINE)


def test_the_numbers_of_a_run(trained):
    lines = records(trained / "text")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "validation_loss" in line] == [3, 6]
    scores = [line for line in lines if "validation_loss" in line]
    assert all(0 < line["validation_accuracy"] < 1 for line in scores)
    for line in scores:
        assert line["validation_perplexity"] == pytest.approx(math.exp(line["validation_loss"]))
    assert (lines[-1]["step"], lines[-1]["tokens"]) == (6, 768)
    assert "final_validation_loss" in lines[-1]


def test_run_json_tells_what_the_run_was(trained):
    about = json.loads((trained / "text/run.json").read_text())
    assert about["recipe"] == "text"
    assert about["data"]["name"] == "text.txt"
    assert about["data"]["characters"] == 2889
    assert len(about["data"]["sha256"]) == 64
    assert about["experiment"]["steps"] == 6
    assert about["experiment"]["model"]["dim"] == 16
    assert {"eqxformer", "python", "jax"} <= set(about["versions"])


def test_the_model_in_a_run_directory_is_an_ordinary_saved_model(trained):
    assert logits(load(trained / "text"), jnp.array([[1, 2, 3]])).shape == (1, 3, 16)


def test_the_same_command_gives_the_same_numbers(trained):
    first, again = records(trained / "rot13"), records(trained / "again")
    assert [line.get("loss") for line in first] == [line.get("loss") for line in again]


def test_default_directories_that_begin_at_once_are_different(here):
    first = default_directory("rot13")
    first.mkdir(parents=True)
    second = default_directory("rot13")
    assert re.fullmatch(r"rot13-\d{8}-\d{6}", first.name)
    assert second.parent == first.parent
    assert second != first
    assert not second.exists()


def test_a_dry_run_shows_every_setting_and_touches_nothing(command, here):
    settings = ("--set", "optimizer.learning_rate.peak=0.5", "--watch", "bfloat16")
    code, out, _ = command("train", "--dry-run", *settings)
    assert code == 0
    assert "Experiment(" in out
    assert "watch=Watch(fits='bfloat16')" in out
    assert "WarmupCosine(peak=0.5" in out
    shown = set(re.findall(r"^  (\w+)=", out, flags=re.MULTILINE))
    assert shown == {field.name for field in dataclasses.fields(TextExperiment)}
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("setting", "path", "expected"),
    [
        ("steps=7", "steps", 7),
        ("data.batch=8", "data.batch", 8),
        ("optimizer.learning_rate.peak=1e-4", "optimizer.learning_rate.peak", 1e-4),
        ("optimizer.betas=[0.8, 0.9]", "optimizer.betas", [0.8, 0.9]),
        ("optimizer.clip=null", "optimizer.clip", None),
        ("optimizer.clip=None", "optimizer.clip", None),
        (
            "model.*.blocks.*.feed_forward.activation=relu",
            "model.decoder.blocks.0.feed_forward.activation",
            "relu",
        ),
        ('optimizer={"type": "SGD", "learning_rate": 0.1}', "optimizer.type", "SGD"),
        ("prompt=one two", "prompt", "one two"),
        ("prompt=a=b", "prompt", "a=b"),
        ("prompt=The ", "prompt", "The "),
        (" steps = 7 ", "steps", 7),
    ],
)
def test_settings_have_the_types_of_their_fields(setting, path, expected):
    value = edited(Rot13().experiment, (setting,)).to_dict()
    for part in path.split("."):
        value = value[int(part)] if part.isdigit() else value[part]
    assert value == expected


def test_settings_are_applied_once_in_their_order(command, here):
    """The first leads nowhere once the second has been applied."""
    first = ("--set", "optimizer.learning_rate.peak=1e-3")
    second = ("--set", "optimizer.learning_rate=2e-3", "--dry-run")
    code, out, err = command("train", "--data", here.parent / "text.txt", *SMALL, *first, *second)
    assert (code, err) == (0, "")
    assert "learning_rate=0.002" in out


def test_what_is_set_of_the_steps_is_what_the_trainer_is_given(command, here, monkeypatch):
    class Looked(Trainer):
        def fit(self):
            given.append(self)
            raise ValueError("that is enough")

    given = []
    monkeypatch.setattr("eqxformer.cli.train.Trainer", Looked)
    set_ = (
        *("--set", 'trains={"type": "Only", "paths": ["norm"]}'),
        *("--set", "precision.compute=bfloat16", "--set", "skips=3", "--set", "microbatch=1"),
        *("--seed", 5, "--watch", "float16", "--out", here / "run"),
    )
    assert command("train", "--data", here.parent / "text.txt", *SMALL, *set_)[0] == 2
    (found,) = given
    assert found.trains == ef.Only(paths=("norm",))
    assert found.precision == ef.Precision(compute="bfloat16")
    assert (found.skips, found.microbatch, found.watch) == (3, 1, ef.Watch(fits="float16"))
    assert (found.steps, type(found.loss).__name__) == (6, "NextToken")


def test_processes_must_agree_on_what_no_step_follows_from(command, here, monkeypatch):
    """One that stops earlier, or validates more often, would leave the others waiting."""
    told = []
    monkeypatch.setattr("eqxformer.cli.train.check_alike", told.append)
    data = ("--data", here.parent / "text.txt", *SMALL, "--dry-run")
    for patience in (3, 4):
        assert command("train", *data, "--set", f"patience={patience}")[0] == 0
    assert [each["beside"]["patience"] for each in told] == [3, 4]
    assert told[0]["beside"]["validate_every"] == 3
    assert "checkpoint" not in told[0]["beside"]
    assert told[0]["experiment"] == told[1]["experiment"]


def test_the_best_model_may_be_the_last(command, here):
    code, _, err = command(
        *("train", "--data", here.parent / "text.txt", *SMALL, "--steps=2", "--out", here / "run")
    )
    assert (code, err) == (0, "")
    (found,) = (line for line in records(here / "run") if "validation_loss" in line)
    assert found["step"] == 2  # validate_every=3
    for name in ("config.json", "model.safetensors"):
        assert (here / "run" / name).read_bytes() == (here / "run/best" / name).read_bytes()


def test_later_settings_win():
    assert edited(Rot13().experiment, ("steps=7", "steps=8")).steps == 8


def test_a_run_that_breaks_down_names_the_step_and_keeps_the_last_good_model(command, here):
    wild = ["--set", 'optimizer={"type": "SGD", "learning_rate": 1e30}']
    code, _, err = command("train", "--data", "../text.txt", "--out", "run", *SMALL, *wild)
    assert code == 1
    assert re.fullmatch(
        r"Error: Step \d is not finite: .*Try a smaller learning rate.* "
        r"The model of step \d is in run\.\n",
        err,
    )
    assert np.isfinite(logits(load(here / "run"), jnp.array([[1, 2, 3]]))).all()
    assert None in records(here / "run")[-1].values()


def test_devices_of_a_mesh_share_the_work(command, here):
    place = here / "run"
    code, out, err = command(
        *("train", "--data", here.parent / "text.txt", "--out", place, *SMALL, "--batch=4"),
        *("--mesh", "tensor=2,fsdp=4", "--steps=2"),
    )
    assert (code, err) == (0, "")
    assert "  mesh       fsdp=4,tensor=2\n  run" in out
    assert [record["step"] for record in records(place) if "gradient_norm" in record] == [1, 2]
    assert load(place).blocks[0].attention.query.weight.shape == (16, 16)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("fsdp=4,tensor=4", "is of 4 x 4 = 16 devices; there are 8"),
        ("data=8", "The rows of a batch must be a multiple of the 8 devices"),
        ("data=8 --batch=8 --set microbatch=4", "With microbatch=4 of 8 rows: The rows of"),
        ("sequence=8 --set data.length=12", "12 tokens of a row cannot be dealt out to 8 devices"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_made(command, here, mesh, message):
    mesh, *more = mesh.split()
    code, out, err = command("train", "--mesh", mesh, *SMALL, *more)
    assert (code, out) == (2, "")
    assert message in err
    assert not list(here.iterdir())
