"""JSON from anyone: bounded in size and depth, every key once, every number finite."""

import contextlib
import gc
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from eqxformer.checkpoints._opening import opened, read_into
from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.strict_json import json_object, json_value

MAX_DEPTH = 100
Value = TypeVar("Value")

# Quoted text, closed or not, so that no start is ever tried twice.
_QUOTED = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_STEP = np.full(256, -1, np.int32)
_STEP[list(b"[{")] = 1


def read_json(path: str | os.PathLike[str], *, limit_bytes: int) -> dict[str, Any]:
    """The JSON object in a file.

    Arguments:
        path: a plain file; a pipe or a device is refused and never waited for.
        limit_bytes: what the file may hold at most; a larger one is not read.

    Raises `MissingFile` where there is no such file, and `CheckpointError` for a file too large,
    text that is not UTF-8, not JSON, no object, nested more than 100 deep, or that has a key twice,
    a number that is not finite, or half of a surrogate pair.

    Example:
        >>> import pathlib, tempfile
        >>> from eqxformer.checkpoints.tensor_files import read_json
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "config.json")
        ...     _ = path.write_text('{"layers": 2}')
        ...     read_json(path, limit_bytes=1000)
        {'layers': 2}
    """
    return _read(pathlib.Path(path), limit_bytes, json_object)


def read_json_text(path: str | os.PathLike[str], *, limit_bytes: int) -> tuple[str, dict[str, Any]]:
    """The text of a file and the JSON object in it, read once; otherwise as `read_json`."""
    return _read(pathlib.Path(path), limit_bytes, lambda text: (text, json_object(text)))


def read_json_list(path: str | os.PathLike[str], *, limit_bytes: int) -> list[Any]:
    """The JSON list in a file; arguments and errors as in `read_json`."""
    return _read(pathlib.Path(path), limit_bytes, _json_list)


def parsed(data: bytes, parse: Callable[[str], Value] = json_object) -> Value:
    """The JSON object in some bytes; `ValueError` with the reason where there is none."""
    if _depth(data) > MAX_DEPTH:  # the parser recurses, in C
        raise ValueError(f"This is not JSON that is nested at most {MAX_DEPTH} deep.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"This is not UTF-8: {error.reason} at byte {error.start}.") from None
    with _no_collection():
        values = parse(text)
    if _SURROGATE.search(data):
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("This is not Unicode: half of a surrogate pair.") from None
    return values


def _read(path: pathlib.Path, limit_bytes: int, parse: Callable[[str], Value]) -> Value:
    with opened(path) as (file, (_, _, size, _)):
        if size > limit_bytes:
            raise CheckpointError(
                f"{path} may hold {limit_bytes:,} bytes of JSON at most; it holds {size:,}."
            )
        data = bytearray(size)
        read_into(path, file, 0, memoryview(data))
    try:
        return parsed(bytes(data), parse)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _json_list(text: str) -> list[Any]:
    values = json_value(text)
    if not isinstance(values, list):
        raise ValueError(f"This must be a JSON list; got {type(values).__name__}.")
    return values


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the collector from looking again and again through what the parser is making.

    It would take three quarters of the time where a text has millions of small lists.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _depth(data: bytes) -> int:
    """How deep the brackets outside of quotes are nested, found without recursion."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return 0
    brackets = np.frombuffer(_QUOTED.sub(b"", data).translate(None, _NO_BRACKETS), np.uint8)
    return int(np.cumsum(_STEP[brackets], dtype=np.int32).max(initial=0))
