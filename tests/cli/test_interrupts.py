"""Ctrl-C is heard wherever it falls."""

import gc
import signal
import sys
import time
import weakref

import pytest

from eqxformer.cli.interrupts import none_lost


@pytest.fixture(autouse=True)
def _ctrl_c_counts():
    """Also where the tests run in the background of a shell, which has it ignored."""
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, kept)


def ctrl_c(*unused):
    signal.raise_signal(signal.SIGINT)


class Finalized:
    def __del__(self):
        ctrl_c()


def in_a_finalizer():
    Finalized()


def in_a_weak_references_callback():
    thing = type("Thing", (), {})()
    reference = weakref.ref(thing, ctrl_c)
    del thing
    assert reference() is None


def in_a_garbage_collection():
    def callback(phase, _):
        if phase == "start":
            ctrl_c()

    gc.callbacks.append(callback)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(callback)


DROPPED = [in_a_finalizer, in_a_weak_references_callback, in_a_garbage_collection]


@pytest.mark.parametrize("falls", DROPPED, ids=lambda each: each.__name__)
def test_ctrl_c_is_heard_where_python_drops_it(falls, capsys):
    with none_lost():
        falls()  # nothing is raised here
        with pytest.raises(KeyboardInterrupt):
            time.sleep(10)
    assert capsys.readouterr().err == ""


def test_ctrl_c_elsewhere_is_heard_at_once():
    with pytest.raises(KeyboardInterrupt), none_lost():
        ctrl_c()


def test_what_else_is_dropped_is_told_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    class Broken:
        def __del__(self):
            raise ZeroDivisionError

    with none_lost():
        Broken()
    assert [each.exc_type for each in told] == [ZeroDivisionError]
    assert sys.unraisablehook == told.append
