"""Safetensors files of a checkpoint: checked before anything is read, read tensor by tensor.

Nothing here believes a file: every length, name and offset is checked against what is there before
memory is asked for, pickles are never opened, and no name in a file is ever used as a path but
those of shards, which must lie in the checkpoint's own directory.
"""

import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from eqxformer.checkpoints._header import Span, read_header
from eqxformer.checkpoints._json import read_json, read_json_list, read_json_text
from eqxformer.checkpoints._opening import Stamp, contained, opened, read_into, shown
from eqxformer.checkpoints._replacing import replaced_directory
from eqxformer.checkpoints._writing import INDEX, WEIGHTS, parse_size, write_file, write_tensors
from eqxformer.checkpoints.errors import CheckpointError, MissingFile

__all__ = [
    "CONVERSION",
    "INDEX",
    "WEIGHTS",
    "TensorFiles",
    "contained",
    "parse_size",
    "read_json",
    "read_json_list",
    "read_json_text",
    "replaced_directory",
    "shard_names",
    "shown",
    "write_file",
    "write_tensors",
]

# How pickles become what is read here, in whole; AutoModel would be the easy mistake.
CONVERSION = (
    "with the class that `architectures` in its config.json names, such as AutoModelForCausalLM, "
    "AutoModelForSeq2SeqLM, AutoModelForMaskedLM or AutoModelForSequenceClassification, and "
    "`save_pretrained` of transformers; AutoModel drops the head"
)
_MAX_INDEX = 12 * 2**20  # bytes: some 120,000 tensors in all
_MAX_LISTED = 20
_SHARD = re.compile(r"[^/\\:]{1,200}\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class _Place(NamedTuple):
    """A tensor, the file it is in, and what that file was when it was checked."""

    path: pathlib.Path
    stamp: Stamp
    span: Span


class TensorFiles:
    """Every tensor of a checkpoint's directory: `open` checks them all and reads none.

    Attributes:
        names: the names of the tensors, sorted.
        nbytes: the size of all tensors together in bytes.

    Example:
        >>> import numpy as np, tempfile
        >>> from eqxformer.checkpoints.tensor_files import TensorFiles, write_tensors
        >>> gain = np.array([1.0, 2.0], np.float32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_tensors(folder, [("gain", lambda: gain, (2,), np.float32)], shard_bytes=100)
        ...     files = TensorFiles.open(folder)
        ...     files.names, files.shape("gain"), files.read("gain").tolist()
        (('gain',), (2,), [1.0, 2.0])
    """

    def __init__(self, places: Mapping[str, _Place]) -> None:
        self._places = dict(sorted(places.items()))
        self.names = tuple(self._places)
        self.nbytes = sum(place.span.nbytes for place in self._places.values())

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> "TensorFiles":
        """The tensors of `model.safetensors`, or of the shards of `model.safetensors.index.json`.

        Where both are there the single file counts, as in transformers. Links may lead elsewhere in
        the directory and, from a snapshot in the hub's cache, to that cache's blobs.

        Arguments:
            directory: where the files lie.

        Raises `MissingFile` where neither is there, and `CheckpointError` for files that are not
        what they should be; the message says which and why.
        """
        folder = pathlib.Path(directory)
        if not folder.is_dir():
            what = "is a file; name the directory it lies in" if folder.exists() else "is not there"
            raise MissingFile(f"The directory {folder} {what}.")
        if os.path.lexists(folder / WEIGHTS):
            return cls(_in_file(folder, WEIGHTS))
        if os.path.lexists(folder / INDEX):
            return cls(_in_shards(folder))
        raise MissingFile(f"No {WEIGHTS} in {folder}, nor {INDEX}. {_instead(folder)}")

    @classmethod
    def open_one(cls, directory: str | os.PathLike[str], name: str) -> "TensorFiles":
        """The tensors of the file of this name; links and errors as in `open`."""
        folder = pathlib.Path(directory)
        if not os.path.lexists(folder / name):
            raise MissingFile(f"No {name} in {folder}. {_instead(folder, name)}")
        return cls(_in_file(folder, name))

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __len__(self) -> int:
        return len(self.names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; `KeyError` where there is none of this name."""
        return self._places[name].span.shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """The type of a tensor's numbers: one of NumPy's own, or bfloat16, or an 8-bit float."""
        return self._places[name].span.dtype

    def read(self, name: str) -> np.ndarray:
        """A tensor in memory of its own; nothing else is read, nothing is mapped.

        Raises `CheckpointError` where the file has changed since it was checked.
        """
        path, stamp, span = self._places[name]
        with opened(path) as (file, now):
            if now != stamp:
                raise CheckpointError(f"{path} has changed since it was checked; open it again.")
            array = np.empty(span.shape, span.dtype)
            raw = array.reshape(-1).view(np.uint8)
            read_into(path, file, span.start, raw.data)
        if array.dtype == np.bool_ and raw.size and raw.max() > 1:
            raise CheckpointError(
                f"{path}: {shown(name)} has bytes that are neither false nor true."
            )
        return array


def shard_names(directory: str | os.PathLike[str]) -> list[str]:
    """The files that `model.safetensors.index.json` names, which need not be there, sorted.

    Raises `CheckpointError` for an index that names anything but files beside it.
    """
    return sorted(set(_weight_map(pathlib.Path(directory)).values()))


def _in_file(folder: pathlib.Path, name: str) -> dict[str, _Place]:
    path = contained(folder, name)
    stamp, spans = read_header(path)
    return {tensor: _Place(path.absolute(), stamp, span) for tensor, span in spans.items()}


def _in_shards(folder: pathlib.Path) -> dict[str, _Place]:
    listed = _weight_map(folder)
    shards = sorted(set(listed.values()))
    absent = [shard for shard in shards if not os.path.lexists(folder / shard)]
    if absent:
        raise MissingFile(_listing(f"{folder / INDEX} names shards that are not there", absent))
    found: dict[str, _Place] = {}
    strays: list[str] = []
    for shard in shards:
        for name, place in _in_file(folder, shard).items():
            found[name] = place
            if listed.get(name) != shard:
                strays.append(f"{shown(name)} is in {shard}, and not meant to be")
    # Other names of a tensor may be listed and in no shard; what is needed is asked for elsewhere.
    if strays:
        raise CheckpointError(_listing(f"{folder / INDEX} does not fit its shards", strays))
    return found


def _weight_map(folder: pathlib.Path) -> dict[str, str]:
    """The shard of every tensor as the index says it."""
    path = contained(folder, INDEX)
    listed = read_json(path, limit_bytes=_MAX_INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{path} must have a `weight_map` of tensors; got {shown(listed)}.")
    for shard in listed.values():
        if not isinstance(shard, str) or not (_SHARD.fullmatch(shard) and shard.isprintable()):
            raise CheckpointError(
                f"{path} may name files of its own directory that end in .safetensors, "
                f"nothing else; got {shown(shard)}."
            )
    return listed


def _listing(title: str, lines: list[str]) -> str:
    rest = [f"and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
    return "\n  ".join([f"{title}:", *lines[:_MAX_LISTED], *rest])


def _instead(folder: pathlib.Path, wanted: str = WEIGHTS) -> str:
    """A sentence on what lies in a directory that has no tensors."""
    try:
        with os.scandir(folder) as entries:
            there = sorted(entry.name for entry in itertools.islice(entries, 1000))
    except OSError as error:
        return f"What is there cannot be listed: {error.strerror}."
    pickles = [name for name in there if name.endswith(_PICKLES)]
    others = [name for name in there if name.endswith(".safetensors")]
    if others:
        return f"{_first(others)} would have to be named {wanted}."
    if pickles:
        how = CONVERSION if wanted == WEIGHTS else "with `save_pretrained` of what wrote it"
        return (
            f"{_first(pickles)} is a pickle, which can run code and is never opened; convert it to "
            f"safetensors where you trust it: {how}."
        )
    return f"There is {_first(there)}." if there else "The directory is empty."


def _first(names: Iterable[str]) -> str:
    first = [shown(name) for name in itertools.islice(names, 6)]
    return ", ".join(first[:5]) + (", ..." if len(first) > 5 else "")
