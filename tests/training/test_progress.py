import io
import re
from types import SimpleNamespace

import pytest

pytest.importorskip("rich")

from rich.console import Console

from eqxformer.training.callbacks import Record
from eqxformer.training.progress import ProgressBar


def shown(terminal, records, steps=100):
    """What a progress bar writes for some records."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=100, color_system=None)
    bar = ProgressBar(console)
    bar.started(SimpleNamespace(steps=steps, step=0))
    for record in records:
        bar.recorded(record)
    bar._bar.refresh()
    bar.closed()
    return file.getvalue()


def steady(steps, loss=2.0):
    """A step of 50 tokens every half second."""
    return [Record(step, 50 * step, 0.5 * step, {"loss": loss}) for step in range(1, steps + 1)]


def test_a_bar_shows_loss_speed_and_time_left():
    out = shown(True, steady(40))
    assert "40/100" in out
    assert "loss 2.000  100 tokens/s  0:00:30 left" in out


def test_speed_is_that_of_the_last_seconds_and_not_of_compiling():
    late = [Record(r.step, r.tokens, r.seconds + 600.0, r.values) for r in steady(40)]
    assert "100 tokens/s" in shown(True, [Record(1, 50, 0.5, {"loss": 2.0}), *late[1:]])


def test_without_a_terminal_a_line_is_written_now_and_then():
    lines = shown(False, steady(100)).splitlines()
    assert len(lines) == 21
    assert lines[0] == "step      1 of 100  loss 2.000"
    assert lines[8] == "step     40 of 100  loss 2.000  100 tokens/s  0:00:30 left"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_validation_is_a_line_that_stays(terminal):
    records = [*steady(30), Record(30, 1500, 15.0, {"validation_loss": 2.25})]
    out = shown(terminal, records)
    assert re.search(r"step     30  loss 2\.000  validation loss 2\.2500\r?\n", out)


def test_everything_that_validation_measures_is_shown():
    scores = {"validation_loss": 2.25, "validation_accuracy": 0.5, "validation_perplexity": 9.4877}
    out = shown(False, [*steady(30), Record(30, 1500, 15.0, scores)])
    assert "validation loss 2.2500, accuracy 0.5000, perplexity 9.4877\n" in out
    assert "step     30  validation bleu 1.0000\n" in shown(
        False, [Record(30, 1500, 15.0, {"validation_bleu": 1.0})]
    )


def test_the_loss_shown_is_a_running_mean_that_begins_without_bias():
    records = [Record(1, 50, 0.5, {"loss": 4.0}), Record(2, 100, 1.0, {"loss": 2.0})]
    assert "loss 2.947" in shown(True, records)  # (0.9 * 4 + 2) / 1.9


def test_a_loss_that_is_not_finite_does_not_spoil_the_mean():
    out = shown(True, [*steady(3), Record(4, 200, 2.0, {"loss": float("nan")})])
    assert "loss 2.000" in out
    assert "nan" not in out
