"""What differs between two descriptions of a run, a line each."""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

_MOST = 12  # lines


def differences(then: Any, now: Any, *, but: Collection[str] = ()) -> list[str]:
    """A line for every value that is not the same in two trees of plain JSON values.

    A value that is missing is as one that is null: a setting that has come since then. The values
    at the paths `but` may differ.

    Example:
        >>> from eqxformer.training.differences import differences
        >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4, "e": None})
        ['a.c: 2 -> 3', 'd: nothing -> 4']
    """
    lines = [line for line in _walk("", then, now) if line.partition(": ")[0] not in but]
    more = len(lines) - _MOST
    return [*lines[:_MOST], f"and {more} more"] if more > 0 else lines


class _Nothing:
    """Where one side has no value."""


_ABSENT = (_Nothing, None)


def _walk(path: str, then: Any, now: Any) -> Iterator[str]:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*then, *now]):
            below = f"{path}.{key}" if path else str(key)
            yield from _walk(below, then.get(key, _Nothing), now.get(key, _Nothing))
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for i, (one, other) in enumerate(zip(then, now, strict=True)):
            yield from _walk(f"{path}.{i}" if path else str(i), one, other)
    elif then != now and not (then in _ABSENT and now in _ABSENT):
        yield f"{path}: {_spelled(then)} -> {_spelled(now)}"


def _spelled(value: Any) -> str:
    if value is _Nothing:
        return "nothing"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
