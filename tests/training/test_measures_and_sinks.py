"""Numbers about a run, and where they go."""

import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import eqxformer as ef
from tests.training.test_callbacks import Run, told


class Clocked(Run):
    """A trainer with a clock that the test sets."""

    def __init__(self):
        super().__init__()
        self.tokens, self.seconds, self.published = 0, 10.0, []

    def publish(self, values):
        self.published.append(values)


def test_speed_is_that_since_the_last_time():
    settings = ef.AdamW(ef.WarmupLinear(peak=1e-3, warmup=10))  # (step / 11) of it at first
    measure = ef.Measure(
        every=4, learning_rate=lambda step: settings.rate(step, of=100), flops=1e6, peak=1e7
    )
    run = Clocked()
    measure.started(run)
    run.step, run.tokens, run.seconds = 4, 400, 12.0
    measure.reached(run)
    run.step, run.tokens, run.seconds = 8, 800, 13.0
    measure.reached(run)
    first, second = run.published
    assert (first["tokens_per_second"], second["tokens_per_second"]) == (200.0, 400.0)
    assert (first["flops_per_second"], second["flops_per_second"]) == (2e6, 4e6)
    assert second["utilisation"] == 0.4
    assert (first["learning_rate"], second["learning_rate"]) == pytest.approx(
        (4e-3 / 11, 8e-3 / 11)
    )
    assert first["memory_bytes"] > 1e6


@pytest.mark.parametrize("rate", [0.25, ef.WarmupCosine(peak=0.25, warmup=2)])
@pytest.mark.parametrize("averaged", [False, True])
def test_the_rate_of_a_step_is_what_the_step_uses(rate, averaged):
    """Of gradient descent, where a step is the rate times the gradient."""
    optimizer = ef.SGD(rate)
    optimizer = ef.Averaged(optimizer) if averaged else optimizer
    chain, weight = optimizer.build(8), {"w": jax.numpy.ones(2)}
    memory = chain.init(weight)
    for step in range(1, 5):
        change, memory = chain.update({"w": jax.numpy.ones(2)}, memory, weight)
        np.testing.assert_allclose(-change["w"][0], optimizer.rate(step, of=8), rtol=1e-6)


def test_a_peak_needs_operations_to_compare():
    with pytest.raises(ValueError, match="`peak` must be above 0 and needs `flops`"):
        ef.Measure(every=1, peak=1e12)


@pytest.mark.filterwarnings("ignore")  # of the libraries that it is made from
def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboardX")
    sink = ef.TensorBoard(tmp_path / "board")
    sink.started(Run())
    told(sink, [3.0, 2.0])
    sink.closed()
    (file,) = (tmp_path / "board").iterdir()
    assert file.read_bytes().count(b"validation_loss") == 2


class FakeRun:
    def __init__(self, log):
        self.lines, self.log = log, lambda values: log.append(values)
        self.define_metric = lambda *names, **options: log.append((names, options))
        self.finish = lambda: log.append("finished")


def test_weights_and_biases_gets_every_number_and_the_same_run_again(monkeypatch):
    """A stand-in for the package, which needs an account."""
    begun, log = [], []
    fake = SimpleNamespace(init=lambda **options: begun.append(options) or FakeRun(log))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    sink = ef.WeightsAndBiases("project", name="run", config={"a": 1})
    sink.started(Run())
    told(sink, [3.0])
    sink.closed()
    again = ef.WeightsAndBiases("project", name="run")
    again.recall(sink.memory())
    again.started(Run())
    assert begun[0]["id"] == begun[1]["id"]
    assert begun[0] | {"project": "project", "config": {"a": 1}, "resume": "allow"} == begun[0]
    assert {"validation_loss": 3.0, "step": 1, "tokens": 1} in log
    assert "finished" in log


def test_a_sink_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'eqxformer\[tensorboard\]'"):
        ef.TensorBoard("board")
    with pytest.raises(ValueError, match=r"pip install 'eqxformer\[wandb\]'"):
        ef.WeightsAndBiases("project")
