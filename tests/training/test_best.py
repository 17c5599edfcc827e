"""What follows one number: the best model is kept, and training stops, whatever interrupted it."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer import Callback, EarlyStopping, Evaluate, SaveBest, Validate
from tests.helpers import compare
from tests.training.test_trainer import TOKENS, WINDOWS, trainer


def test_the_best_of_the_steps_own_numbers_is_kept_with_the_weights_of_that_step():
    weights, kept = {}, []

    class Look(Callback):
        every = 1

        def reached(self, trainer):
            weights[trainer.step] = np.array(trainer.state.model.output)

    trainer(Look()).fit()
    best = SaveBest(lambda model: kept.append(np.array(model.output)), metric="loss")
    trainer(best).fit()
    np.testing.assert_array_equal(kept[-1], weights[best.step])


class Mean(Callback):
    """Puts another model than the last in its place, as an average of several is."""

    def finished(self, trainer):
        trainer.outcome = jax.tree.map(jnp.zeros_like, trainer.state.model)


def test_the_best_by_a_number_of_the_outcome_is_the_outcome():
    kept = []
    measure = Evaluate(lambda model: {"size": float(abs(model.output).sum())})
    again = trainer(Mean(), SaveBest(kept.append, metric="size"), measure, steps=3)
    again.fit()
    assert [float(abs(model.output).sum()) for model in kept] == [0.0]
    again.callbacks = [Validate(ef.consecutive(TOKENS, length=6, batch=3), every=3)]
    again.callbacks += [SaveBest(kept.append)]
    again.fit()  # in which there is no outcome when the number is known
    np.testing.assert_array_equal(kept[-1].output, again.state.model.output)
    assert float(abs(kept[-1].output).sum()) > 0


def test_a_number_after_the_last_step_stops_nothing():
    early = EarlyStopping(patience=1, metric="size")
    done = trainer(early, Evaluate(lambda _: {"size": 1.0}, every=3), steps=4)
    done.fit()
    assert (done.step, early._failures, done.stopped) == (4, 1, None)


class Ends(Callback):
    """Validates with a few windows, and remembers what was published of them, by step."""

    def __init__(self):
        self.found = []

    def recorded(self, record):
        if "validation_loss" in record.values:
            self.found.append((record.step, record.values["validation_loss"]))


def validating(*more, every, steps, **options):
    """What was validated in a run, and the run."""
    ends = Ends()
    validate = Validate(ef.consecutive(TOKENS, length=6, batch=3), every=every)
    run = trainer(*more, validate, ends, steps=steps, **options)
    run.fit()
    return ends.found, run


def test_the_model_that_comes_out_is_validated_and_may_be_the_best():
    kept = []
    best = SaveBest(lambda model: kept.append(np.array(model.output)))
    found, run = validating(best, every=2, steps=5)
    assert [step for step, _ in found] == [2, 4, 5]
    assert (best.step, best.best) == (5, found[-1][1]) == (5, min(loss for _, loss in found))
    np.testing.assert_array_equal(kept[-1], run.outcome.output)
    np.testing.assert_allclose(found[-1][1], validating(every=5, steps=5)[0][0][1], rtol=1e-6)


def test_the_model_that_comes_out_is_not_validated_twice():
    averaged = ef.Averaged(ef.SGD(0.1), decay=0.5).build(4)
    for options in ({}, {"optimizer": averaged}):
        found, _ = validating(every=2, steps=4, **options)
        assert [step for step, _ in found] == [2, 4]


def test_a_model_in_the_place_of_the_last_is_validated_too():
    found, _ = validating(Mean(), every=2, steps=4)
    assert [step for step, _ in found] == [2, 4, 4]
    assert found[-1][1] == pytest.approx(np.log(5), rel=1e-6)  # all zeros: no token is likelier


def test_what_was_stopped_early_is_validated_but_not_what_ctrl_c_ended():
    class Stops(Callback):
        every = 3

        def reached(self, trainer):
            trainer.stop("enough")

    assert [step for step, _ in validating(Stops(), every=2, steps=9)[0]] == [2, 3]
    assert [step for step, _ in validating(every=2, steps=9, batches=Pressed(3))[0]] == [2]


@pytest.mark.parametrize("others", [1, 3, 4])
def test_a_run_that_is_over_is_validated_as_it_was_at_its_end(tmp_path, others):
    """Whatever `every` is then; of a checkpoint that does not say what was validated, too."""
    for steps, end in ((4, [2, 4]), (5, [2, 4, 5])):
        there = tmp_path / f"{steps}"
        first, _ = validating(every=2, steps=steps, checkpoints=ef.Checkpoints(there, every=9))
        assert [step for step, _ in first] == end
        again, _ = validating(every=others, steps=steps, checkpoints=ef.Checkpoints(there, every=9))
        assert again == first[2:]
    old = Validate(ef.consecutive(TOKENS, length=6, batch=3), every=2)
    old.recall({})
    run = trainer(steps=4)
    run.step = 4
    old.started(run)
    assert old.memory() == {"step": 4}


class Pressed:
    """Batches during which Ctrl-C is pressed, in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def __call__(self, step):
        if step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGINT)
        return WINDOWS.build(TOKENS)(step)


def followed(place, *, pressed=None):
    """A run that ends when its loss fails to become better, with the best model by it."""
    kept = []
    best = SaveBest(lambda model: kept.append(jax.tree.map(jnp.copy, model)), metric="loss")
    run = trainer(
        best,
        EarlyStopping(patience=3, metric="loss"),
        steps=40,
        batches=Pressed(pressed),
        checkpoints=ef.Checkpoints(place, every=50),
    )
    run.fit()
    return run, best, kept


def test_stopping_early_by_a_number_of_each_step_is_the_same_however_training_was_interrupted(
    tmp_path,
):
    whole, best, kept = followed(tmp_path / "whole")
    assert whole.stopped
    losses = []

    class Log(Callback):
        def recorded(self, record):
            losses.append(record.values["loss"])

    trainer(Log(), steps=40).fit()
    bests = [min(losses[: n + 1]) for n in range(40)]
    assert best.step == 1 + int(np.argmin(losses[: whole.step]))
    assert whole.step == next(n for n in range(3, 40) if bests[n] == bests[n - 3]) + 1
    for step in (1, 2, best.step, whole.step - 1, whole.step):
        first, _, before = followed(tmp_path / f"{step}", pressed=step)
        assert (first.interrupted, first.step) == (True, step)
        again, then, after = followed(tmp_path / f"{step}")
        assert (again.step, again.stopped) == (whole.step, whole.stopped)
        assert (then.best, then.step) == (best.best, best.step)
        assert compare.same_bits(again.outcome, whole.outcome)
        assert compare.same_bits([*before, *after][-1], kept[-1])


def test_a_number_that_comes_now_and_then_is_not_waited_for():
    lags = []

    class Lag(Callback):
        def started(self, trainer):
            self.trainer = trainer

        def recorded(self, record):
            lags.append(self.trainer.step - record.step)

    trainer(SaveBest(print), EarlyStopping(patience=1), Lag()).fit()
    assert lags == [0, 4, 4, 4, 4, 4, 3, 2, 1, 0]  # but for the first step, which shows it
