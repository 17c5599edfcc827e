"""Fingerprints: SHA-256 of everything that batches are made of.

All bytes are read, of the largest file too: a hash of samples, or one remembered by size and date,
would miss a change in the middle of a file. A processor hashes about a gigabyte a second, once at
the start of a run; who cannot wait for that gives `feed` a `fingerprint` of their own.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

_PIECE = 1 << 22  # numbers hashed at a time, so that a mapped file is never in memory whole


def digest(*parts: Any) -> str:
    """SHA-256 of several plain JSON values together."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_array(array: Shaped[np.ndarray, "..."]) -> str:
    """SHA-256 of an array's type, shape and numbers."""
    rows = array.reshape(-1)
    made = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    for start in range(0, rows.size, _PIECE):
        made.update(np.ascontiguousarray(rows[start : start + _PIECE]).view(np.uint8).data)
    return made.hexdigest()


def fingerprint_of(documents: Any) -> str:
    """The `fingerprint` of documents, or one made of them where they have none."""
    if hasattr(documents, "fingerprint"):
        return documents.fingerprint
    if isinstance(documents, np.ndarray):
        return digest_of_array(documents)
    arrays = (digest_of_array(np.asarray(documents[i])) for i in range(len(documents)))
    return digest("documents", *arrays)
