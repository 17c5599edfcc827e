"""A request to stop: Ctrl-C, or the SIGTERM of a scheduler, is heard once and obeyed in order."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax


class StopRequest:
    """Which signal asked to stop, None as long as none has."""

    signal: int | None = None

    def heard(self, step: int) -> int | None:
        """The signal after which this step is the last one, the same for all processes."""
        return self.signal


class SharedStopRequest(StopRequest):
    """The SIGTERM of any process, which JAX's coordination service makes one step of for all."""

    def heard(self, step: int) -> int | None:
        from jax.experimental.multihost_utils import reached_preemption_sync_point

        if reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """A request that the first Ctrl-C or SIGTERM fills in, instead of ending the process.

    The second ends it at once: Ctrl-C as ever, by `KeyboardInterrupt`, SIGTERM as the system does
    it. Only the main thread may handle signals; in another, nobody asks. Where several processes
    train, JAX hears SIGTERM for them, and some steps later all stop together; Ctrl-C is as ever.
    """
    if jax.process_count() > 1:
        yield SharedStopRequest()
        return
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
            # One that C code has put there is None, and cannot be put back from here.
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
