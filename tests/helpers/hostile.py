"""What a hostile file must meet: one exception, one line that names the file, soon and small."""

import contextlib
import os
import sys
import time
import tracemalloc

import pytest

from eqxformer.checkpoints.errors import CheckpointError

SECONDS = 0.5  # of this process's own, whatever else the machine does
MEMORY = 16 * 2**20  # bytes; the files have 5 million at most, what they ask for is more


def refused(call, *reasons, kind=CheckpointError):
    """Asserts the library's exception, on one line with all of `reasons`, soon and small."""
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        call()
    assert time.process_time() - start < SECONDS
    with traced() as peak, pytest.raises(CheckpointError):
        call()
    assert peak() < MEMORY
    message = str(caught.value)
    assert isinstance(caught.value, kind)
    assert all(reason in message for reason in reasons), message
    first, *others = message.split("\n")
    assert len(first) < 600
    assert first.isprintable()
    assert all(line.startswith("  ") for line in others)


@contextlib.contextmanager
def traced():
    """Gives a function of the most bytes that Python had at a time since the block began."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def watch_opened(monkeypatch):
    """The paths of all files that are opened from now on in this test, by any way Python has."""
    opened = []
    monkeypatch.setattr(_Audit, "opened", opened)
    if not _Audit.installed:
        sys.addaudithook(_Audit.hook)
        _Audit.installed = True
    return opened


class _Audit:
    """An audit hook, which Python never takes back, that writes to the list there is."""

    installed = False
    opened: list[str] | None = None

    @classmethod
    def hook(cls, event, arguments):
        if event == "open" and cls.opened is not None and not isinstance(arguments[0], int):
            cls.opened.append(os.fsdecode(arguments[0]))
