"""Training by several processes: how they meet, and what holds for all of them."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from eqxformer.training.differences import differences

_PATIENCE = 60  # seconds that one that has ended, or failed, waits for the others


def join(where: str) -> None:
    """Makes this process one of several that work together; before JAX is asked for a device.

    Arguments:
        where: `auto`, where JAX finds the others by itself, as under Slurm and Open MPI, of which
            it expects a task for every GPU, in a job of Kubernetes and on Cloud TPUs; or
            `RANK/COUNT@HOST:PORT`, such as `0/2@host0:1234`: which of how many this is, counted
            from 0, and where the first one listens. It has all devices of its host then.

    Raises `ValueError` where JAX finds nobody, or for other words.
    """
    if where == "auto":
        try:
            jax.distributed.initialize(shutdown_timeout_seconds=_PATIENCE)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                "JAX finds no other processes here, as it does under Slurm, Open MPI and "
                f"Kubernetes ({error}). Say which one this is: `0/2@host0:1234`, the first of two."
            ) from None
        return
    found = re.fullmatch(r"(\d+)/(\d+)@(\S+:\d+)", where)
    if found is None or int(found[1]) >= int(found[2]):
        raise ValueError(
            "Processes are `auto`, or RANK/COUNT@HOST:PORT with RANK from 0 to below COUNT, such "
            f"as `0/2@host0:1234`; got `{where}`."
        )
    rank, count, first = int(found[1]), int(found[2]), found[3]
    jax.distributed.initialize(
        first,
        num_processes=count,
        process_id=rank,
        cluster_detection_method="deactivate",  # which would leave it one device
        shutdown_timeout_seconds=_PATIENCE,
    )


def told_by_first(function: Callable[[], Any]) -> Any:
    """What a function gives on the first process, as plain JSON values, on every one of them.

    Only the first calls it. Where it raises `ValueError` or `OSError` there, all raise; every
    process must ask.
    """
    if jax.process_count() == 1:
        return function()
    raised: ValueError | OSError | None = None
    told: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            told = {"value": function()}
        except (ValueError, OSError) as error:
            raised, told = error, {"error": str(error)}
    told = _broadcast(told)
    if raised is not None:
        raise raised
    if "error" in told:
        raise ValueError(told["error"])
    return told["value"]


def told_by_each(value: Any) -> list[Any]:
    """What each process says, as plain JSON values, on every one of them; all must ask."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = process_allgather(np.int32(data.size)).tolist()
    padded = np.zeros(max(lengths), np.uint8)
    padded[: data.size] = data
    rows = process_allgather(padded)
    return [json.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True)]


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Has every process raise `ValueError` where one of them raises anything within.

    What is within must not wait for other processes.
    """
    raised: Exception | None = None
    try:
        yield
    except Exception as error:  # whatever it is, the others must not wait for this one
        raised = error
    failed = _each(raised is not None)
    if raised is not None:
        raise raised
    if failed:
        raise ValueError(f"Process {failed[0]} could not begin; what it says itself is why.")


def check_alike(values: Mapping[str, Any]) -> None:
    """Raises `ValueError` on all processes where one has other plain JSON values than the first."""
    if jax.process_count() == 1:
        return
    lines = differences(told_by_first(lambda: values), json.loads(json.dumps(values)))
    unlike = _each(bool(lines))
    if unlike:
        mine = f"; first -> this one: {'; '.join(lines)}" if lines else ""
        raise ValueError(
            f"Process {unlike[0]} was asked for another thing than the first{mine}. Give all of "
            "them the same command and the same data."
        )


def _each(said: bool) -> list[int]:
    """The processes on which it was true."""
    if jax.process_count() == 1:
        return [0] if said else []
    from jax.experimental.multihost_utils import process_allgather

    return np.flatnonzero(process_allgather(np.int32(said))).tolist()


def _broadcast(value: Any) -> Any:
    from jax.experimental.multihost_utils import broadcast_one_to_all

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(broadcast_one_to_all(np.int32(data.size)))
    padded = np.zeros(length, np.uint8)
    padded[: min(length, data.size)] = data[:length]
    return json.loads(np.asarray(broadcast_one_to_all(padded)).tobytes())
