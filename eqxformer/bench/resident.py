"""How much memory of the host a call takes while it runs."""

from collections.abc import Callable
from pathlib import Path

_SELF = Path("/proc/self")


def growth(call: Callable[[], object]) -> int | None:
    """Calls, and says by how many bytes the process grew meanwhile at most.

    What the call gives back counts while it is held, what it has imported or compiled before does
    not. None where the system does not tell: all but Linux (see proc_pid_clear_refs(5)).

    Example:
        >>> from eqxformer.bench.resident import growth
        >>> grown = growth(lambda: bytearray(50_000_000))
        >>> grown is None or 40e6 < grown < 60e6
        True
    """
    try:
        (_SELF / "clear_refs").write_text("5")  # the largest size so far is the size now
        before = _size("VmRSS")
    except OSError:
        call()
        return None
    call()
    return max(_size("VmHWM") - before, 0)


def _size(name: str) -> int:
    """A size of this process in bytes, as `/proc/self/status` calls it."""
    lines = (_SELF / "status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
