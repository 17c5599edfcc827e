"""The plot names every candidate, its multiple and its time."""

import pytest

from eqxformer.bench import plot


def test_a_plot_has_a_panel_a_question_and_a_bar_a_candidate(tmp_path):
    measured = {
        "eqxformer": {"median": 0.12, "quartiles": [0.1, 0.2]},
        "torch": {"median": 0.1, "quartiles": [0.09, 0.11]},
    }
    others = {"eqxformer": {"median": 3.0, "quartiles": [2.0, 4.0]}}
    panels = {"nano: 4 layers": measured, "baby: 6 layers": others}
    drawn = plot.bars(panels, tmp_path / "steps.svg", "torch")
    text = drawn.read_text()
    for words in ("nano: 4 layers", "1.20   120 ms", "1.00   100 ms", "torch = 1"):
        assert words in text
    for words in ("baby: 6 layers", "1.00   3.00 s", "eqxformer = 1"):  # no torch to compare with
        assert words in text


def test_without_matplotlib_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="install matplotlib"):
        plot.check()
