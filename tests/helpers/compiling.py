"""How many programs JAX compiles."""

import contextlib
from collections.abc import Iterator

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_counts: list[list[str]] = []


def _listen(event: str, _seconds: float, **_about: object) -> None:
    if event == _EVENT:
        for counts in _counts:
            counts.append(event)


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """A list that grows by one with every program that is compiled inside."""
    counts: list[str] = []
    _counts.append(counts)
    try:
        yield counts
    finally:
        _counts.remove(counts)
