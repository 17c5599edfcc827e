"""A request to stop: Ctrl-C, or the SIGTERM of a scheduler, is heard once and obeyed in order."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Which signal asked to stop, None as long as none has."""

    signal: int | None = None


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """A request that the first Ctrl-C or SIGTERM fills in, instead of ending the process.

    The second ends it at once: Ctrl-C as ever, by `KeyboardInterrupt`, SIGTERM as the system does
    it. Only the main thread may handle signals; in another, nobody asks.
    """
    asked = StopRequest()

    def notice(number: int, frame: FrameType | None) -> None:
        asked.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in before:
        signal.signal(each, notice)
    try:
        yield asked
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
