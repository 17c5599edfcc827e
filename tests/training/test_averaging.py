import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxformer.checkpoints.native import load
from eqxformer.models import families
from eqxformer.optimizers.optimizer import SGD
from eqxformer.pretrained.load import from_pretrained
from eqxformer.pretrained.save import save_pretrained
from eqxformer.sharding import Placement, Rules, make_mesh
from eqxformer.training.averaging import AverageLast, average
from eqxformer.training.callbacks import Callback, Evaluate, Save
from eqxformer.training.trainer import Trainer
from tests.helpers.compare import same_bits
from tests.helpers.models import filled
from tests.training.test_trainer import TOKENS, WINDOWS
from tests.training.tiny import Bigram

CONFIG = families.gpt(vocab=5, dim=4, layers=1, heads=2, context=8)


def leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model)]


def test_the_average_is_the_mean_of_every_weight():
    models = [filled(CONFIG, seed) for seed in range(3)]
    for mean, *each in zip(leaves(average(models)), *map(leaves, models), strict=True):
        expected = np.mean(np.stack(each).astype(np.float64), axis=0)
        np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=1e-7)
        assert mean.dtype == np.float32


def test_bfloat16_is_summed_in_float32():
    ones = jnp.ones(8, jnp.bfloat16)
    many = [ones] * 300  # in bfloat16, 256 + 1 is 256
    assert (average(many) == ones).all()
    assert average(many).dtype == jnp.bfloat16


def test_whole_numbers_are_those_of_the_first():
    one, two = ({"x": jnp.ones(2) * i, "count": jnp.array([i])} for i in (1, 2))
    found = average([one, two])
    np.testing.assert_allclose(found["x"], 1.5)
    assert found["count"] == 1


def test_models_from_two_directories_are_averaged(tmp_path):
    models = [filled(CONFIG, seed) for seed in range(2)]
    for number, each in enumerate(models):
        save_pretrained(each, tmp_path / str(number))
    read = [from_pretrained(tmp_path / str(number)) for number in range(2)]
    assert read[0].config != read[1].config
    mean = average(read)
    assert mean.config == read[0].config
    for found, *each in zip(leaves(mean), *map(leaves, read), strict=True):
        np.testing.assert_allclose(found, (each[0] + each[1]) / 2, rtol=1e-6, atol=1e-7)


def test_one_model_is_its_own_average():
    assert same_bits(average([filled(CONFIG, 1)]), filled(CONFIG, 1))


def test_models_come_one_after_the_other_and_are_not_kept():
    seen = []

    def models():
        for number in range(5):
            if len(seen) > 2:
                assert [each() for each in seen[1:-1]] == [None] * (len(seen) - 2)
            array = np.full(3, number, np.float32)
            seen.append(weakref.ref(array))
            yield array
            del array

    np.testing.assert_allclose(average(models()), 2.0)


def test_models_that_are_not_alike_are_refused():
    other = families.gpt(vocab=6, dim=4, layers=1, heads=2, context=8)
    with pytest.raises(ValueError, match=r"`embedding\.tokens\.weight` has the shape \(5, 4\)"):
        average([filled(CONFIG), filled(other)])
    with pytest.raises(ValueError, match="at least one model; got none"):
        average([])


class Weights(Callback):
    """Remembers the model of every step."""

    every = 1

    def __init__(self):
        self.models = {}

    def reached(self, trainer):
        self.models[trainer.step] = jax.tree.map(jnp.copy, trainer.state.model)


def test_the_mean_of_the_last_models_is_what_is_measured_and_saved(tmp_path):
    weights, saved, measured = Weights(), [], []
    trainer = Trainer(
        model=filled(CONFIG, 0),
        batches=WINDOWS.build(TOKENS),
        optimizer=SGD(0.1).build(steps=10),
        steps=10,
        key=jax.random.key(1),
        callbacks=[
            weights,
            AverageLast(tmp_path / "last", count=3, every=2),
            Save(saved.append, every=5),
            Evaluate(lambda model: measured.append(model) or {"x": 1.0}),
        ],
    )
    state = trainer.fit()
    mean = average(weights.models[step] for step in (6, 8, 10))
    assert same_bits(mean, trainer.outcome)
    assert same_bits(saved[-1], trainer.outcome)
    assert same_bits(measured[0], trainer.outcome)
    assert not same_bits(state.model, trainer.outcome)
    assert len(saved) == 3
    assert names(tmp_path / "last") == ["step-10", "step-6", "step-8"]
    assert same_bits(load(tmp_path / "last" / "step-10"), state.model)


def test_the_mean_lies_where_the_model_lay(tmp_path):
    trainer = Trainer(
        model=filled(CONFIG, 0),
        batches=WINDOWS.edit(batch=4).build(TOKENS),
        optimizer=SGD(0.1).build(steps=2),
        steps=2,
        key=jax.random.key(1),
        callbacks=[AverageLast(tmp_path / "last", count=2, every=1)],
        placement=Placement(make_mesh("fsdp=4", devices=jax.devices()[:4]), Rules(uneven="whole")),
    )
    state = trainer.fit()
    found, wanted = map(jax.tree.leaves, (trainer.outcome, state.model))
    assert any(not each.sharding.is_fully_replicated for each in wanted)
    for mean, last in zip(found, wanted, strict=True):
        assert mean.sharding.is_equivalent_to(last.sharding, last.ndim)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def at(step, model, *, interrupted=False):
    """What a callback sees of a trainer after some steps."""
    state = types.SimpleNamespace(model=model, averaged=model)
    return types.SimpleNamespace(
        step=step, state=state, outcome=model, interrupted=interrupted, placement=None
    )


def test_without_averaging_the_last_model_is_saved_once():
    saved, model = [], filled(CONFIG, 0)
    save = Save(saved.append, every=5)
    save.reached(at(5, model))
    save.finished(at(5, model))
    assert len(saved) == 1
    save.finished(at(6, model))
    assert len(saved) == 2


def test_nothing_is_averaged_after_ctrl_c(tmp_path):
    last = AverageLast(tmp_path / "last", count=3, every=2)
    for step in (2, 4):
        last.reached(at(step, filled(CONFIG, step)))
    trainer = at(4, filled(CONFIG, 4), interrupted=True)
    last.finished(trainer)
    assert same_bits(trainer.outcome, filled(CONFIG, 4))
    trainer.interrupted = False
    last.finished(trainer)
    assert same_bits(trainer.outcome, average([filled(CONFIG, 2), filled(CONFIG, 4)]))


def test_training_that_begins_removes_what_an_earlier_one_left_and_nothing_else(tmp_path):
    last = AverageLast(tmp_path / "last", count=3, every=2)
    last.started(at(0, None))
    for step in (2, 4, 6):
        last.reached(at(step, filled(CONFIG, step)))
    (tmp_path / "last" / "step-notes").mkdir()
    last.started(at(4, None))  # training that goes on
    assert names(tmp_path / "last") == ["step-2", "step-4", "step-notes"]
    last.started(at(0, None))
    assert names(tmp_path / "last") == ["step-notes"]


@pytest.mark.parametrize("name", ["count", "every"])
def test_numbers_of_an_average_are_positive(name, tmp_path):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1; got 0"):
        AverageLast(tmp_path, **{"count": 2, "every": 3, name: 0})


def test_a_model_that_cannot_be_saved_is_refused_when_it_is_to_be_kept(tmp_path):
    model = Bigram(key=jax.random.key(0))
    with pytest.raises(ValueError, match="needs a model with a `config`"):
        AverageLast(tmp_path, count=2, every=2).reached(at(2, model))
