"""What is refused for want of memory, and what is not."""

import json

import jax
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.cli.memory import check_memory, least
from eqxformer.cli.settings import edited
from eqxformer.training.recipes import recipe
from eqxformer.training.state import TrainState
from eqxformer.training.step import make_step
from tests.cli.conftest import TEXT, small_model
from tests.helpers.models import filled

LARGE = ["--batch", "1024", "--set", "data.length=1024", "--set", "model.dim=2048"]
SGD, CLIPPED = (
    f"optimizer={json.dumps({'type': 'SGD', 'learning_rate': 0.1, **clip})}"
    for clip in ({}, {"clip": {"type": "ClipByNorm", "limit": 1.0}})
)
SCANNED = 'model.layout={"type": "Scanned", "remat": "nothing_saved"}'
HEAD = 'trains={"type": "Only", "paths": ["head"]}'


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text(TEXT)
    return recipe("text").prepare(path)


@pytest.fixture
def small(task):
    """An experiment with some settings, with two blocks."""

    def made(*settings):
        model = small_model(layers=2)[1::2]
        return edited(task.experiment, (*model, "data.batch=4", "data.length=32", *settings))

    return made


def test_a_run_that_fits_some_rows_at_a_time_is_begun(command, here, task, monkeypatch):
    monkeypatch.setattr("eqxformer.cli.memory.memory", lambda: 2 * 10**9)
    code, _, err = command("train", *LARGE, "--set", "microbatch=1024", "--dry-run")
    assert code == 2
    assert "Training needs at least 35.3 GB, 304.0 MB of it for the weights themselves" in err
    assert "there is memory of 2.0 GB" in err
    assert "set `microbatch`, the rows whose gradient is made at once" in err
    code, _, err = command("train", *LARGE, "--set", "microbatch=1", "--dry-run")
    assert (code, err) == (0, "")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match=r"at least 35\.3 GB"):
        check_memory(edited(task.experiment, (*LARGE[3::2], "data.batch=1024")))
    monkeypatch.undo()
    monkeypatch.setattr("eqxformer.cli.memory.memory", lambda: 2 * 10**9)
    code, _, err = command("train", *LARGE, "--dry-run")
    assert (code, err) == (0, "")  # a CPU takes few rows at a time unasked


def test_what_is_not_held_is_not_asked_for(small, monkeypatch):
    """One number per weight more for each moment; of what is not trained, the weights alone."""
    shapes = ef.shapes(small().model)
    weights, head = 4 * ef.count(shapes), 4 * ef.count(shapes.head)
    batch, waiting = 4 * 4 * 32, 4 * 4 * 32 * 16 * 2
    assert waiting < weights
    assert least(small(SGD)) == (weights, weights + batch + waiting)
    assert least(small(CLIPPED)) == (weights, 2 * weights + batch)
    assert least(small(SGD, "skips=1")) == (weights, 2 * weights + batch)
    assert least(small(SGD, "microbatch=1")) == (weights, 2 * weights + batch + waiting // 4)
    half = least(small(CLIPPED, "precision.compute=bfloat16"))
    assert half == (weights, weights + weights // 2 + batch)
    assert least(small(CLIPPED, HEAD)) == (weights, weights + head + batch)
    assert least(small(SGD, "data.batch=400"))[1] == weights + 100 * (batch + waiting)
    frozen = small(SGD, HEAD).edit(checkpoint="there")  # which may hold int8 weights
    assert least(frozen)[0] == head + (weights - head) // 4
    assert least(small())[1] - least(small(CLIPPED))[1] in range(2 * weights, 2 * weights + 64)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        (SGD,),
        (SGD, SCANNED, "data.batch=64"),
        (CLIPPED, "precision.compute=bfloat16", "data.batch=64"),
        (CLIPPED, HEAD),
        ("microbatch=1", SCANNED, 'model.head={"type": "TiedHead"}', "model.vocab=40000"),
    ],
)
def test_no_more_is_asked_for_than_the_compiled_step_takes(small, settings):
    made = small(*settings)
    optimizer = made.optimizer.build(made.steps)
    options = {"precision": made.precision}
    state = TrainState.create(
        filled(made.model), optimizer, key=jax.random.key(0), trains=made.trains, **options
    )
    step = make_step(made.loss, optimizer, microbatch=made.microbatch, **options)
    rows, length = made.data.shape
    batch = ef.TokenBatch(np.zeros((rows, length + 1), np.int32))
    taken = step.lower(state, batch).compile().memory_analysis()
    held = taken.argument_size_in_bytes + taken.temp_size_in_bytes
    assert least(made, alone_on_cpu=True)[1] <= held


def test_a_cpu_alone_asks_for_the_tokens_that_it_takes_at_once(small):
    """Of 64 rows of 32 tokens it takes 32, and holds the sum of their gradients; or all of them."""
    many = small(SGD, "data.batch=64")
    weights, on_cpu = least(many, alone_on_cpu=True)
    batch, waiting = 4 * 64 * 32, 4 * 64 * 32 * 16 * 2
    assert least(many) == (weights, weights + batch + waiting)
    assert on_cpu == weights + batch + min(weights + waiting // 2, waiting)
    asked = small(SGD, "data.batch=64", "microbatch=64")
    assert least(asked, alone_on_cpu=True) == least(many)


def test_nobody_is_refused_where_the_memory_is_not_known(small, monkeypatch):
    monkeypatch.setattr("eqxformer.cli.memory.memory", lambda: None)
    check_memory(small("data.batch=1000000000"))
