"""How much a process grows while it calls something."""

import sys

import numpy as np
import pytest

from eqxformer.bench import resident

LARGE = 60_000_000
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


def test_what_is_held_and_what_was_let_go_counts_and_what_was_before_does_not():
    before = np.ones(LARGE, np.uint8)
    kept = []
    grown = resident.growth(lambda: kept.append(np.ones(LARGE, np.uint8)))
    assert 0.9 * LARGE < grown < 1.2 * LARGE
    del kept[0]
    again = resident.growth(lambda: np.ones(LARGE, np.uint8).sum())
    assert 0.9 * LARGE < again < 1.2 * LARGE
    assert resident.growth(lambda: None) < 0.1 * LARGE
    assert before.all()


def test_a_system_that_does_not_tell_is_called_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(resident, "_SELF", tmp_path / "nowhere")
    calls = []
    assert resident.growth(lambda: calls.append(1)) is None
    assert calls == [1]
