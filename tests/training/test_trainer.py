import json
import os
import signal

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxformer.data.batches import TokenBatch
from eqxformer.data.share import Share
from eqxformer.data.windows import RandomWindows, consecutive
from eqxformer.losses.tokens import NextToken, next_token_loss
from eqxformer.optimizers.optimizer import SGD
from eqxformer.optimizers.trainable import Only
from eqxformer.training.best import EarlyStopping, SaveBest
from eqxformer.training.callbacks import (
    Callback,
    Save,
    ShowSamples,
    Validate,
    evaluator,
)
from eqxformer.training.precision import Precision
from eqxformer.training.records import LossPlot, MetricsFile
from eqxformer.training.state import TrainState
from eqxformer.training.step import make_step
from eqxformer.training.trainer import NonFiniteLoss, Trainer
from tests.training.tiny import Bigram, Noisy

TOKENS = np.random.default_rng(0).integers(0, 5, 200).astype(np.int32)
WINDOWS = RandomWindows(length=6, batch=3)


def trainer(*callbacks, steps=10, model=None, batches=None, optimizer=None, **options):
    return Trainer(
        model=Noisy(key=jax.random.key(0)) if model is None else model,
        batches=WINDOWS.build(TOKENS) if batches is None else batches,
        optimizer=optimizer or SGD(0.1).build(steps=steps),
        steps=steps,
        key=jax.random.key(1),
        callbacks=callbacks,
        **options,
    )


class Log(Callback):
    """Remembers everything that a trainer tells."""

    every = 4

    def __init__(self):
        self.events, self.records = [], []

    def started(self, trainer):
        self.events.append("started")

    def recorded(self, record):
        self.records.append(record)

    def reached(self, trainer):
        self.events.append((trainer.step, self.records[-1].step))

    def finished(self, trainer):
        self.events.append("finished")

    def closed(self):
        self.events.append("closed")


def test_training_is_the_loop_that_one_would_write():
    optimizer = SGD(0.1).build(steps=10)
    state = TrainState.create(Noisy(key=jax.random.key(0)), optimizer, key=jax.random.key(1))
    step, batches, losses = make_step(next_token_loss, optimizer), WINDOWS.build(TOKENS), []
    for number in range(10):
        state, metrics = step(state, batches(number))
        losses.append(float(metrics["loss"]))
    log = Log()
    result = trainer(log).fit()
    assert [record.values["loss"] for record in log.records] == losses
    np.testing.assert_array_equal(result.model.output, state.model.output)


def test_callbacks_hear_of_every_step_in_order_and_know_its_numbers_when_reached():
    log = Log()
    trainer(log).fit()
    assert [record.step for record in log.records] == list(range(1, 11))
    assert [record.tokens for record in log.records] == list(range(18, 181, 18))
    assert log.events == ["started", (4, 4), (8, 8), "finished", "closed"]


def test_numbers_are_read_some_steps_later_so_that_the_device_does_not_wait():
    class Lag(Callback):
        def started(self, trainer):
            self.trainer, self.lags = trainer, []

        def recorded(self, record):
            self.lags.append(self.trainer.step - record.step)

    lag = Lag()
    trainer(lag).fit()
    assert lag.lags == [4, 4, 4, 4, 4, 4, 3, 2, 1, 0]  # ahead at first, all read at the end


def test_fitting_again_begins_anew():
    log = Log()
    again = trainer(log, steps=3)
    again.fit()
    again.fit()
    first, second = log.records[:3], log.records[3:]
    assert [r.values for r in first] == [r.values for r in second]


def test_the_model_that_was_given_stays_as_it_is():
    model = Bigram(key=jax.random.key(0))
    before = np.asarray(model.output)
    trainer(model=model).fit()
    np.testing.assert_array_equal(model.output, before)


def poisoned(step):
    """Batches of which the sixth makes everything NaN."""
    batch = WINDOWS.build(TOKENS)(step)
    return TokenBatch(batch.tokens, np.full((3, 7), np.nan if step == 5 else 1.0, np.float32))


def test_a_loss_that_is_not_finite_stops_training_and_names_the_step():
    log, saved = Log(), []
    save = Save(lambda model: saved.append(np.array(model.output)), every=2)
    with pytest.raises(NonFiniteLoss, match=r"^Step 6 is not finite: .*loss=nan.*Try a") as error:
        trainer(log, save, batches=poisoned, steps=100).fit()
    assert error.value.step == 6
    assert len(saved) == 2  # after steps 2 and 4, not 6
    assert np.isfinite(saved).all()
    assert log.events[-1] == "closed"
    assert "finished" not in log.events


def test_the_trainer_passes_on_what_trains_and_in_which_type():
    model = Bigram(key=jax.random.key(0))
    some = trainer(model=model, trains=Only(paths=("output",))).fit().model
    np.testing.assert_array_equal(some.embedding, model.embedding)
    assert not np.array_equal(some.output, model.output)
    losses = []
    for precision in (Precision(), Precision(compute="bfloat16")):
        log = Log()
        trainer(log, model=model, steps=1, precision=precision).fit()
        losses.append(log.records[0].values["loss"])
    assert losses[0] != losses[1]
    assert abs(losses[0] - losses[1]) < 0.05


class StopAt(Callback):
    """Stops training when the numbers of a step are read."""

    def __init__(self, step):
        self.step = step

    def started(self, trainer):
        self.trainer = trainer

    def recorded(self, record):
        if record.step == self.step:
            self.trainer.stop("enough")


def test_all_numbers_are_read_of_training_that_stops_as_they_are_read():
    log = Log()
    log.every = None  # or numbers would be waited for
    stopped = trainer(log, StopAt(2))
    stopped.fit()
    assert (stopped.step, stopped.stopped) == (6, "enough")
    assert [record.step for record in log.records] == list(range(1, 7))


def test_training_that_stops_does_not_hide_that_it_broke_down():
    with pytest.raises(NonFiniteLoss, match="^Step 6 is not finite"):
        trainer(StopAt(2), batches=poisoned).fit()


def test_callbacks_begin_anew_too():
    saved = []
    save, best, early = Save(saved.append), SaveBest(lambda _: None), EarlyStopping(patience=2)
    validate = Validate(consecutive(TOKENS, length=6, batch=3), every=3)
    again = trainer(validate, save, best, early, steps=3)
    again.fit()
    first = best.best
    best.best, early._best, early._failures = -9.0, -9.0, 1
    again.fit()
    assert best.best == first
    assert again.stopped is None
    assert len(saved) == 2


def test_validation_over_nothing_is_no_perfect_score():
    with pytest.raises(ValueError, match="at least one batch"):
        Validate([], every=1)
    batch = WINDOWS.build(TOKENS)(0)
    nothing = TokenBatch(batch.tokens, np.zeros((3, 7), np.float32))
    log = Log()
    trainer(log, Validate([nothing], every=1), steps=1).fit()
    assert np.isnan(log.records[-1].values["validation_loss"])


def test_a_share_of_each_batch_is_refused_where_no_process_brings_the_rest():
    half = WINDOWS.edit(batch=4).build(TOKENS, share=Share(index=0, count=2))
    with pytest.raises(ValueError, match="one of 2 shares.*got 1 processes and placement=None"):
        trainer(batches=half).fit()


class Press(Callback):
    """Presses Ctrl-C in the middle of a step."""

    def __init__(self, *steps):
        self.steps = steps

    def __call__(self, step):
        if step + 1 in self.steps:
            os.kill(os.getpid(), signal.SIGINT)
        return WINDOWS.build(TOKENS)(step)


def test_ctrl_c_ends_training_after_the_current_step():
    log, saved = Log(), []
    before = signal.getsignal(signal.SIGINT)
    run = trainer(log, Save(lambda model: saved.append(1)), batches=Press(7), steps=1000)
    state = run.fit()
    assert run.interrupted
    assert state.step == run.step == log.records[-1].step == 7
    assert saved == [1]
    assert log.events[-2:] == ["finished", "closed"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_it_at_once():
    class Twice(Callback):
        def recorded(self, record):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    log = Log()
    with pytest.raises(KeyboardInterrupt):
        trainer(log, Twice(), steps=1000).fit()
    assert log.events[-1] == "closed"


def test_training_in_another_thread_leaves_signals_alone():
    import threading

    done = []
    thread = threading.Thread(target=lambda: done.append(trainer(steps=2).fit()))
    thread.start()
    thread.join()
    assert done[0].step == 2


@pytest.mark.parametrize("steps", [0, -3])
def test_steps_must_be_positive(steps):
    with pytest.raises(ValueError, match=f"`steps` must be at least 1; got {steps}"):
        trainer(steps=steps)


def test_validation_is_the_mean_over_all_tokens_without_noise():
    log, model = Log(), Noisy(key=jax.random.key(0))
    batches = consecutive(TOKENS[:50], length=6, batch=4)
    trainer(log, Validate(batches, every=5), model=model, steps=5).fit()
    frozen = trainer(model=model, steps=5).fit().model
    scores = jax.nn.log_softmax(frozen(jnp.asarray(TOKENS[:49])))
    expected = -np.mean(np.asarray(scores)[np.arange(49), TOKENS[1:50]])
    measured = log.records[-1]
    assert (measured.step, list(measured.values)) == (5, ["validation_loss"])
    np.testing.assert_allclose(measured.values["validation_loss"], expected, rtol=1e-5)


def test_a_scalar_loss_cannot_validate():
    model, batches = Bigram(key=jax.random.key(0)), consecutive(TOKENS, length=6, batch=4)
    with pytest.raises(TypeError, match="must be a `Loss`"):
        evaluator(next_token_loss)(model, batches)
    assert evaluator(NextToken())(model, batches).weight == len(TOKENS) - 1


def test_samples_are_shown_at_intervals():
    shown = []
    trainer(ShowSamples(lambda model, step: f"after {step}", shown.append, every=5)).fit()
    assert shown == ["after 5", "after 10"]


def test_saving_at_the_last_step_happens_once():
    saved = []
    trainer(Save(lambda model: saved.append(float(model.output.sum())), every=5)).fit()
    assert len(saved) == 2


def test_metrics_are_one_line_of_json_for_each_record(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(NonFiniteLoss):
        trainer(MetricsFile(path), batches=poisoned).fit()

    def refuse(constant):
        raise AssertionError(constant)

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert set(lines[0]) == {"step", "tokens", "seconds", "loss", "gradient_norm"}
    assert lines[-1]["loss"] is None


class Unclosable(Callback):
    """Cannot be closed, as a file on a full disk."""

    def closed(self):
        raise OSError("the disk is full")


def test_what_cannot_be_closed_does_not_hide_why_training_ended():
    log = Log()
    with pytest.raises(NonFiniteLoss, match="Step 6") as error:
        trainer(log, Unclosable(), batches=poisoned).fit()
    (note,) = error.value.__notes__
    assert note == "Then Unclosable could not be closed: OSError: the disk is full"
    assert log.events[-1] == "closed"
    with pytest.raises(OSError, match="the disk is full"):
        trainer(Unclosable(), steps=1).fit()


def test_an_iterator_that_was_given_is_left_open_and_every_fit_begins_where_it_stood():
    numbers = grain.MapDataset.range(90).to_iter_dataset().map(lambda i: WINDOWS.build(TOKENS)(i))
    iterator = iter(numbers)
    next(iterator)
    log = Log()
    again = trainer(log, batches=iterator, steps=3)
    again.fit()
    again.fit()
    losses = [record.values["loss"] for record in log.records]
    assert losses[:3] == losses[3:]
    np.testing.assert_array_equal(next(iterator).tokens, WINDOWS.build(TOKENS)(4).tokens)


def test_an_iterator_whose_state_is_no_json_is_trained_on_where_it_stands():
    class Batches:
        number = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.number += 1
            return WINDOWS.build(TOKENS)(self.number - 1)

        def get_state(self):
            return {"number": np.int64(self.number)}

        def set_state(self, state):
            raise AssertionError("nobody has moved it")

    batches, log = Batches(), Log()
    trainer(log, batches=batches, steps=2).fit()
    assert batches.number == 2
    expected = Log()
    trainer(expected, steps=2).fit()
    assert [r.values["loss"] for r in log.records] == [r.values["loss"] for r in expected.records]


def test_the_loss_curve_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "loss.png"
    trainer(LossPlot(path), Validate(consecutive(TOKENS, length=6, batch=4), every=5)).fit()
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_trained_model_is_still_a_module_of_its_class():
    assert isinstance(trainer(steps=1).fit().model, eqx.Module)
