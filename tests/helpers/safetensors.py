"""Safetensors files made byte by byte, as no library would write them."""

import json
import struct

import numpy as np
from safetensors.numpy import save_file

from eqxformer.checkpoints._header import DTYPES
from eqxformer.checkpoints.tensor_files import INDEX


def raw_file(path, tensors, *, sparse=False):
    """A file of zeros with these tensors, each a type by its name in the format and a shape."""
    header, end = {}, 0
    for name, (kind, shape) in tensors.items():
        start, end = end, end + DTYPES[kind].itemsize * int(np.prod(shape, dtype=object))
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    write_raw(path, json.dumps(header), b"" if sparse else bytes(end))
    if sparse:
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size + end)


def write_raw(path, header, data=b"", *, length=None):
    """A file of a header as it is, text or bytes, and data; `length` is what it says of itself."""
    header = header.encode() if isinstance(header, str) else header
    length = len(header) if length is None else length
    path.write_bytes(struct.pack("<Q", length) + header + data)


def shard_files(folder, shards, index=None):
    """Shards and their index: a dict of arrays for every file; `index` replaces the weight map."""
    folder.mkdir(exist_ok=True)
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    listed = {name: file for file, tensors in shards.items() for name in tensors}
    text = json.dumps({"metadata": {}, "weight_map": listed if index is None else index})
    (folder / INDEX).write_text(text)
