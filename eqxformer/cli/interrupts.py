"""Ctrl-C that Python would lose."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

_LATER = 0.05  # seconds, in which a finalizer has ended


@contextlib.contextmanager
def none_lost() -> Iterator[None]:
    """Inside, a Ctrl-C that falls into a finalizer is raised a moment later.

    Python drops what is raised in `__del__`, in a callback of a weak reference and in one of the
    garbage collection, of which JAX has one; it only hands it to `sys.unraisablehook`.
    """
    main, before = threading.main_thread(), sys.unraisablehook

    def again() -> None:
        if main.is_alive() and main.ident is not None:
            signal.pthread_kill(main.ident, signal.SIGINT)

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            return before(dropped)
        timer = threading.Timer(_LATER, again)
        timer.daemon = True
        timer.start()
        return None

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
