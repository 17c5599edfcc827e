import click
import pytest

from eqxformer.tour import walk
from eqxformer.tour.stops import STOPS


@pytest.fixture
def short(monkeypatch):
    """A tour of two stops."""
    monkeypatch.setattr(walk, "STOPS", STOPS[:2])


def test_a_tour_shows_every_stop_and_does_not_wait_where_nobody_is(command, short):
    code, out, err = command("tour")
    assert (code, err) == (0, "")
    for stop in STOPS[:2]:
        assert stop.title in out
    assert "takes  tokens" in out


@pytest.mark.parametrize(("options", "waits"), [([], 2), (["--all"], 0)])
def test_a_tour_waits_before_every_stop_unless_told_not_to(
    command, short, monkeypatch, options, waits
):
    asked = []
    monkeypatch.setattr(click, "pause", asked.append)
    assert command("tour", *options)[0] == 0
    assert len(asked) == waits


def test_ctrl_c_leaves_the_tour_without_a_traceback(command, short, monkeypatch):
    def interrupt(info):
        raise KeyboardInterrupt

    monkeypatch.setattr(click, "pause", interrupt)
    code, _, err = command("tour")
    assert code == 130
    assert "Traceback" not in err
