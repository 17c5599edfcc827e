"""JSON in which every key stands once and every number is finite."""

import collections
import json
import math
import typing
from typing import Any


def json_object(text: str) -> dict[str, Any]:
    """The JSON object in a text; `ValueError` for anything else.

    That includes a key given twice and a number that is not finite.
    """
    values = json_value(text)
    if not isinstance(values, dict):
        raise ValueError(f"A config must be a JSON object; got {type(values).__name__}.")
    return values


def json_value(text: str) -> Any:
    """What a JSON text says, of any kind; `ValueError` as in `json_object`."""
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"This is not JSON: {error}.") from None


@typing.no_type_check  # called for every object of a file, which may have millions
def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one that says a thing twice is refused, not read as its last word."""
    values = dict(pairs)
    if len(values) < len(pairs):
        (twice, _), *_ = collections.Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"`{repr(twice[:80])[1:-1]}` is there twice")
    return values


@typing.no_type_check  # called for every number
def _finite(text: str) -> float:
    """A JSON number; the words that Python reads as one, and 1e999, are refused."""
    value = float(text)
    if not math.isfinite(value):
        wanted = "a number" if math.isnan(value) else "finite"
        raise ValueError(f"a value must be {wanted}; got {text[:20].lower()}")
    return value
