"""Safetensors files written tensor by tensor, one in memory at a time, the same bytes each time."""

import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from eqxformer.checkpoints._header import (
    DTYPES,
    MAX_HEADER,
    METADATA,
    NAMES,
    Span,
    check_name,
    header_of,
)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

# What transformers looks for in a file before it reads it.
_ABOUT: Mapping[str, str] = MappingProxyType({"format": "pt"})
_ORDER = {dtype: -place for place, dtype in enumerate(DTYPES.values())}
_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}B": 1000 ** (i + 1) for i, letter in enumerate("KMGT")}
_UNITS |= {f"{letter}IB": 1024 ** (i + 1) for i, letter in enumerate("KMGT")}
_SIZE = re.compile(r"\s*(\d[\d_]{0,30}(?:\.\d{1,9})?)\s*([KMGT]?I?B?)\s*", re.ASCII | re.IGNORECASE)


class _Source(NamedTuple):
    """A tensor to be: what makes it, and what it will be."""

    make: Callable[[], np.ndarray]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


Tensors = Iterable[tuple[str, Callable[[], np.ndarray], tuple[int, ...], Any]]


def write_tensors(
    directory: str | os.PathLike[str],
    tensors: Tensors,
    *,
    shard_bytes: int,
    metadata: Mapping[str, str] = _ABOUT,
) -> None:
    """Writes `model.safetensors`, or shards and their index where one file would be too large.

    Shards are filled in the order given, as transformers does; a tensor larger than a shard has one
    of its own. Each tensor is made when its turn comes and let go thereafter.

    Arguments:
        directory: where the files go; it must exist and have none of them yet.
        tensors: name, function that makes the array, its shape, its type.
        shard_bytes: how many bytes of tensors a file may hold.
        metadata: what the header of every file says about itself.

    Raises `ValueError` for names, types and sizes that no file can hold, names given twice, and
    arrays that are not what was announced, and `FileExistsError` rather than overwrite a file.

    Example:
        >>> import numpy as np, os, tempfile
        >>> from eqxformer.checkpoints.tensor_files import write_tensors
        >>> tensors = [(n, lambda: np.zeros(8, np.float32), (8,), np.float32) for n in "ab"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_tensors(folder, tensors, shard_bytes=40)
        ...     for name in sorted(os.listdir(folder)):
        ...         print(name)
        model-00001-of-00002.safetensors
        model-00002-of-00002.safetensors
        model.safetensors.index.json
    """
    if type(shard_bytes) is not int or shard_bytes < 1:
        raise ValueError(f"`shard_bytes` must be a positive number of bytes; got {shard_bytes!r}.")
    folder = pathlib.Path(directory)
    sources = _sources(tensors)
    sizes = {name: Span(s.dtype, s.shape, 0).nbytes for name, s in sources.items()}
    shards = _shards(sizes, shard_bytes)
    if len(shards) == 1:
        return _write(folder / WEIGHTS, sources, metadata)
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        _write(folder / file, {name: sources[name] for name in names}, metadata)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    with open(folder / INDEX, "xb") as file:
        file.write((json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
        _to_disk(file)


def write_file(path: pathlib.Path, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    """Writes one file of tensors under a name of its own; otherwise as `write_tensors`."""
    _write(path, _sources(tensors), metadata)


def parse_size(text: str | int) -> int:
    """A number of bytes: `5GB` is 5 x 10^9, `5GiB` is 5 x 2^30, `100_000` is itself.

    Raises `ValueError` for anything else, and for less than one byte.

    Example:
        >>> from eqxformer.checkpoints.tensor_files import parse_size
        >>> parse_size("5GB"), parse_size("1.5 kB"), parse_size("2MiB"), parse_size(100)
        (5000000000, 1500, 2097152, 100)
    """
    found = _SIZE.fullmatch(str(text)) if isinstance(text, str | int) else None
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or isinstance(text, bool):
        raise ValueError(f"A size must look like 5GB, 500MB, 2GiB or 100_000; got {text!r}.")
    size = int(Fraction(found[1].replace("_", "")) * unit)
    if size < 1:
        raise ValueError(f"A size must be at least one byte; got {text!r}.")
    return size


def _sources(tensors: Tensors) -> dict[str, _Source]:
    sources: dict[str, _Source] = {}
    for name, make, shape, dtype in tensors:
        check_name(name)
        if name in sources or name == METADATA:
            raise ValueError(f"Each name must be that of one tensor; {name} is taken already.")
        if np.dtype(dtype) not in NAMES:
            known = ", ".join(map(str, NAMES))
            raise ValueError(f"{name} is {np.dtype(dtype)}; the types of safetensors are {known}.")
        sources[name] = _Source(make, tuple(map(int, shape)), np.dtype(dtype))
    return sources


def _shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """The names of each shard; one that is too large for any goes before those still gathered."""
    done: list[list[str]] = []
    gathered: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if size > limit:
            done.append([name])
            continue
        if filled + size > limit:
            done.append(gathered)
            gathered, filled = [], 0
        gathered.append(name)
        filled += size
    return [*done, gathered] if gathered or not done else done


def _write(path: pathlib.Path, sources: Mapping[str, _Source], metadata: Mapping[str, str]) -> None:
    """One file, wide types first, so that every tensor lies at a multiple of its type's size."""
    ordered = dict(sorted(sources.items(), key=lambda item: (_ORDER[item[1].dtype], item[0])))
    header = header_of({name: (s.dtype, s.shape) for name, s in ordered.items()}, metadata)
    if len(header) - 8 > MAX_HEADER:
        raise ValueError(f"{len(ordered):,} tensors are too many for one file; use smaller shards.")
    with open(path, "xb") as file:
        file.write(header)
        for name, source in ordered.items():
            file.write(_raw(name, source))
        _to_disk(file)


def _raw(name: str, source: _Source) -> memoryview:
    """The bytes of a tensor, made now."""
    array = np.asarray(source.make())
    if array.shape != source.shape or array.dtype != source.dtype:
        raise ValueError(
            f"{name} should be {source.dtype} of shape {source.shape}; it was made as "
            f"{array.dtype} of shape {array.shape}."
        )
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
