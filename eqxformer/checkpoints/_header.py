"""The header of a safetensors file: which tensors it holds, and where, checked to the last byte.

The format: eight bytes with the length of the header, little-endian; the header, a JSON object of
name -> type, shape and span in the data; the data, which the spans cover without gap or overlap.
https://huggingface.co/docs/safetensors
"""

import itertools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from eqxformer.checkpoints._json import parsed
from eqxformer.checkpoints._opening import Stamp, opened, read_into, shown
from eqxformer.checkpoints.errors import CheckpointError

MAX_HEADER = 8 * 2**20  # bytes: some 70,000 tensors in one file
MAX_AXES = 32
_MAX_BYTES = 2**63 - 1
METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}

# The types by their names in the format, in the order in which files hold them: the last one first.
DTYPES: Mapping[str, np.dtype[Any]] = {
    name: jnp.dtype(ours)
    for name, ours in {
        "BOOL": "bool",
        "U8": "uint8",
        "I8": "int8",
        "F8_E5M2": "float8_e5m2",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E8M0": "float8_e8m0fnu",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "I16": "int16",
        "U16": "uint16",
        "F16": "float16",
        "BF16": "bfloat16",
        "I32": "int32",
        "U32": "uint32",
        "F32": "float32",
        "C64": "complex64",
        "F64": "float64",
        "I64": "int64",
        "U64": "uint64",
    }.items()
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Span(NamedTuple):
    """A tensor in a file: its type and shape, and where its bytes begin."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


def read_header(path: pathlib.Path) -> tuple[Stamp, dict[str, Span]]:
    """Every tensor of a safetensors file, and the file's stamp; nothing of the data is read."""
    with opened(path) as (file, stamp):
        size = stamp[2]
        try:
            if size < 8:
                raise ValueError(f"it has {size} bytes, and 8 say how long its header is.")
            length = bytearray(8)
            read_into(path, file, 0, memoryview(length))
            header = bytearray(_checked_length(int.from_bytes(length, "little"), size))
            read_into(path, file, 8, memoryview(header))
            return stamp, _spans(bytes(header), 8 + len(header), size)
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None


def header_of(layout: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], metadata: Any) -> bytes:
    """The length and the header of a file that holds these tensors in this order."""
    fields: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    start = 0
    for name, (dtype, shape) in layout.items():
        stop = start + Span(dtype, shape, start).nbytes
        offsets = [start, stop]
        fields[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
        start = stop
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def check_name(name: str) -> None:
    """Raises `ValueError` for a name that no tensor should have."""
    if not name or name != name.strip() or not name.isprintable() or len(name) > 1000:
        raise ValueError(
            "the name of a tensor must be 1 to 1,000 printable characters without spaces at its "
            f"ends; got {shown(name)}."
        )


def _checked_length(length: int, size: int) -> int:
    if length > size - 8:
        raise ValueError(f"its header should have {length:,} bytes, and {size - 8:,} are there.")
    if length > MAX_HEADER:
        raise ValueError(
            f"its header may have {MAX_HEADER:,} bytes at most; it has {length:,}. Split the file."
        )
    return length


def _spans(header: bytes, start: int, size: int) -> dict[str, Span]:
    """The tensors of a header by name; `start` and `size` bound the data in the file."""
    if not header.startswith(b"{"):
        raise ValueError(f"its header must begin with a brace; it begins with {header[:1]!r}.")
    fields = parsed(header)
    _check_metadata(fields.pop(METADATA, {}))
    spans, ends = {}, {}
    for name, entry in fields.items():
        check_name(name)
        spans[name], ends[name] = _span(name, entry, start, size)
    _check_cover(spans, ends, start, size)
    return spans


def _span(name: str, entry: Any, data: int, size: int) -> tuple[Span, int]:
    """One tensor and the end of its bytes in the file."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        what = ", ".join(map(shown, entry)) if isinstance(entry, dict) else shown(entry)
        raise ValueError(
            f"{shown(name)} must have dtype, shape and data_offsets; got {what[:200]}."
        )
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        known = ", ".join(DTYPES)
        raise ValueError(f"{shown(name)} is of type {shown(kind)}; the known ones are {known}.")
    if not _are_sizes(shape) or len(shape) > MAX_AXES:
        raise ValueError(
            f"the shape of {shown(name)} must be up to {MAX_AXES} whole numbers from 0 on; "
            f"got {shown(shape)}."
        )
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{shown(name)} must have two data_offsets; got {shown(offsets)}.")
    span = Span(DTYPES[kind], tuple(shape), data + offsets[0])
    end = data + offsets[1]
    # Counted without zeros, since NumPy makes no empty array with other axes that large either.
    if span.dtype.itemsize * math.prod(filter(None, shape)) > _MAX_BYTES:
        raise ValueError(f"{shown(name)} of shape {shown(shape)} is larger than any memory.")
    if not data <= span.start <= end <= size:
        raise ValueError(
            f"the bytes {offsets[0]:,} to {offsets[1]:,} of {shown(name)} are not among the "
            f"{size - data:,} bytes of data."
        )
    if end - span.start != span.nbytes:
        raise ValueError(
            f"{shown(name)} of type {kind} and shape {shown(shape)} has {span.nbytes:,} bytes; its "
            f"data_offsets give it {end - span.start:,}."
        )
    return span, end


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v <= _MAX_BYTES for v in values)


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"its {METADATA} must be an object of strings; got {shown(metadata)}.")


def _check_cover(spans: Mapping[str, Span], ends: Mapping[str, int], start: int, size: int) -> None:
    """Raises `ValueError` unless the tensors cover the data from `start` on, each byte once."""
    placed = sorted((span.start, ends[name], name) for name, span in spans.items())
    for (_, end, one), (begin, _, other) in itertools.pairwise([(start, start, ""), *placed]):
        if begin < end:
            raise ValueError(f"{shown(one)} and {shown(other)} lie over the same bytes.")
        if begin > end:
            raise ValueError(f"{begin - end:,} bytes before {shown(other)} belong to no tensor.")
    rest = size - (placed[-1][1] if placed else start)
    if rest:
        raise ValueError(f"{rest:,} bytes at its end belong to no tensor.")
