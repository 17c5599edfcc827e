"""Training by several processes: what the first one finds holds for all."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def told_by_first(function: Callable[[], Any]) -> Any:
    """What a function gives on the first process, as plain JSON values, on every one of them.

    Only the first calls it. Where it raises `ValueError` there, all raise; every process must ask.
    """
    if jax.process_count() == 1:
        return function()
    raised: ValueError | None = None
    told: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            told = {"value": function()}
        except ValueError as error:
            raised, told = error, {"error": str(error)}
    told = _broadcast(told)
    if raised is not None:
        raise raised
    if "error" in told:
        raise ValueError(told["error"])
    return told["value"]


def _broadcast(value: Any) -> Any:
    from jax.experimental.multihost_utils import broadcast_one_to_all

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(broadcast_one_to_all(np.int32(data.size)))
    padded = np.zeros(length, np.uint8)
    padded[: min(length, data.size)] = data[:length]
    return json.loads(np.asarray(broadcast_one_to_all(padded)).tobytes())
