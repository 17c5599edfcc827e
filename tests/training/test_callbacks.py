"""What callbacks know, and know again after a checkpoint."""

import json
import math
import re
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.training.test_trainer import trainer


class Run:
    """What a callback sees of a trainer."""

    def __init__(self, step=0):
        self.step, self.stopped, self.outcome = step, None, None
        self.state = SimpleNamespace(averaged="the averaged model")

    def stop(self, reason, *, by):
        self.stopped = reason


def told(callback, losses, first=1):
    for step, loss in enumerate(losses, start=first):
        callback.recorded(ef.Record(step, step, 0.0, {"validation_loss": loss}))


def test_the_best_model_is_kept_and_no_other():
    saved = []
    best = ef.SaveBest(saved.append)
    best.started(Run())
    told(best, [3.0, 2.0, 2.5, math.nan, 2.0, 1.0])
    best.recorded(ef.Record(9, 9, 0.0, {"loss": 0.0}))
    assert saved == ["the averaged model"] * 3
    assert (best.best, best.step) == (1.0, 6)


def test_the_largest_may_be_the_best():
    saved = []
    best = ef.SaveBest(saved.append, larger=True)
    best.started(Run())
    told(best, [3.0, 2.0, 4.0])
    assert len(saved) == 2


@pytest.mark.parametrize("rest", [0, 2, 4])
def test_stopping_early_counts_on_after_a_checkpoint(rest):
    losses = [3.0, 2.0, 2.1, 2.2, 1.95, 2.3]
    stops = ef.EarlyStopping(patience=3, least=0.1)
    run = Run()
    stops.started(run)
    told(stops, losses[:rest])
    again = ef.EarlyStopping(patience=3, least=0.1)
    again.recall(json.loads(json.dumps(stops.memory())))
    run.step = rest  # of the checkpoint
    again.started(run)
    told(again, losses[rest:5], first=rest + 1)
    assert "validation_loss has not become better than 2.0 for 3 times" in run.stopped


def test_stopping_early_asks_for_numbers_that_make_sense():
    with pytest.raises(ValueError, match="`patience` must be at least 1"):
        ef.EarlyStopping(patience=0)


def test_the_file_of_numbers_goes_on_where_the_checkpoint_was(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = ef.MetricsFile(path)
    file.started(Run())
    told(file, [3.0, 2.0])
    memory = json.loads(json.dumps(file.memory()))
    told(file, [1.0, 0.5], first=3)
    file.closed()
    with path.open("a") as torn:
        torn.write('{"step": 5, "to')
    again = ef.MetricsFile(path)
    again.recall(memory)
    again.started(Run(step=2))
    told(again, [7.0], first=3)
    again.closed()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["validation_loss"]) for line in lines] == [(1, 3), (2, 2), (3, 7)]


def test_the_curve_of_a_resumed_run_has_its_beginning(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": i, "tokens": 0, "seconds": 0, "loss": 9.0 - i} for i in range(1, 6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot = ef.LossPlot(tmp_path / "loss.png", history=path)
    plot.started(Run(step=3))
    plot.recorded(ef.Record(4, 0, 0.0, {"loss": np.float32(1.0)}))
    assert plot.curves["loss"] == [(1, 8.0), (2, 7.0), (3, 6.0), (4, 1.0)]


def test_what_was_saved_last_is_known_after_a_checkpoint():
    save = ef.Save(lambda _: None, every=2)
    save.recall({"step": 40})
    save.started(Run(step=40))
    assert save.step == 40
    assert save.memory() == {"step": 40}


def test_numbers_that_are_arrays_are_read_before_any_callback_has_them(tmp_path):
    kept = []
    best = ef.SaveBest(kept.append, metric="accuracy", larger=True)
    file = ef.MetricsFile(tmp_path / "metrics.jsonl")
    given = {"accuracy": jnp.mean(jnp.ones(3)), "rows": np.float32(0.5), "count": 3}
    measure = ef.Evaluate(lambda _: given, every=2)
    checkpoints = ef.Checkpoints(tmp_path / "checkpoints", every=2)
    trainer(best, file, measure, steps=4, checkpoints=checkpoints).fit()
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    found = {name: lines[-1][name] for name in given}
    assert found == {"accuracy": 1.0, "rows": 0.5, "count": 3}
    assert (len(kept), type(best.best)) == (1, float)


@pytest.mark.parametrize(
    ("value", "shown"), [(jnp.ones(3), "an array of shape (3,)"), (None, "NoneType"), ("x", "str")]
)
def test_what_is_no_number_is_named(value, shown):
    measure = ef.Evaluate(lambda _: {"right": 1.0, "accuracy": value})
    with pytest.raises(TypeError, match=rf"got {re.escape(shown)} as `accuracy`. Give one number"):
        trainer(measure, steps=1).fit()


def test_a_memory_that_no_checkpoint_can_hold_is_the_callbacks_fault(tmp_path):
    class Remembers(ef.Callback):
        def memory(self):
            return {"best": np.float32(1.5)}

    checkpoints = ef.Checkpoints(tmp_path / "checkpoints", every=1)
    with pytest.raises(TypeError, match="`memory` of the callback Remembers must give plain JSON"):
        trainer(Remembers(), steps=1, checkpoints=checkpoints).fit()


def test_an_average_of_the_weights_is_saved_once():
    saved = []
    averaged = ef.Averaged(ef.SGD(0.1), decay=0.5).build(4)
    trainer(ef.Save(saved.append, every=2), steps=4, optimizer=averaged).fit()
    assert len(saved) == 2
