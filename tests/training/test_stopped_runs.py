"""Runs that were stopped go on when they are told to, and from where each process stood."""

import signal

import grain
import pytest

import eqxformer as ef
from eqxformer.training.callbacks import Callback
from eqxformer.training.signals import stop_requests
from tests.training.test_checkpoints import trainer


class Enough(Callback):
    """Stops training after its second step."""

    every = 2

    def reached(self, trainer):
        if trainer.step == 2:
            trainer.stop("enough", by=self)


def test_a_run_that_was_stopped_goes_on_with_more_steps_or_without_who_stopped_it(tmp_path):
    def again(name, *callbacks, steps=4):
        steady = trainer(tmp_path / name, *callbacks, steps=steps, optimizer=ef.SGD(0.1))
        steady.fit()
        return steady.step, steady.stopped

    for name in ("longer", "without"):
        assert again(name, Enough()) == (2, "enough")
        assert again(name, Enough()) == (2, "enough")
    assert again("longer", Enough(), steps=5) == (5, None)
    assert again("without") == (4, None)


def test_stopping_early_has_patience_again_in_a_run_that_is_made_longer(tmp_path):
    def early(steps):
        measure = ef.Evaluate(lambda _: {"size": 1.0}, every=1)
        stops = ef.EarlyStopping(patience=2, metric="size")
        run = trainer(tmp_path / "c", measure, stops, steps=steps, optimizer=ef.SGD(0.1))
        run.fit()
        return run.step

    assert [early(9), early(9), early(10)] == [3, 3, 5]


def test_positions_of_shares_go_with_as_many_processes_alone():
    run = trainer(batches=iter(grain.MapDataset.range(9).to_iter_dataset()))
    run._feed = ef.feed(run.batches)
    with pytest.raises(ValueError, match="shares of 2 processes.*got shares of 1. Go on with 2 "):
        run._move_feed({"feed": [run._first, run._first], "shares": 2})
    next(run.batches)
    run._move_feed({"feed": run._first})  # as checkpoints had it before
    assert next(run.batches) == 0


def test_a_handler_that_c_code_had_put_there_gives_way_to_the_systems(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signal, "getsignal", lambda _: None)
    try:
        with stop_requests():
            pass
        monkeypatch.undo()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        monkeypatch.undo()
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
