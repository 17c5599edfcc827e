"""The seal of a directory: a digest of every file in its folders, written when all are there."""

import hashlib
import json
import os
from pathlib import Path

_SEAL = "seal.json"


class BrokenSeal(Exception):
    """What is wrong with a directory."""


def seal(directory: Path) -> None:
    """Writes down the SHA-256 of every file in the folders of a directory, in one piece."""
    text = json.dumps({"files": _digests(directory)}, indent=0)
    part = directory / f".{_SEAL}.part"
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, directory / _SEAL)


def check_seal(directory: Path) -> None:
    """Raises `BrokenSeal`, which names a file, where a directory is not as it was when sealed."""
    try:
        known = json.loads((directory / _SEAL).read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise BrokenSeal(f"its file {_SEAL} cannot be read") from None
    found = _digests(directory)
    for name in known:
        if name not in found:
            raise BrokenSeal(f"its file {name} is missing")
        if found[name] != known[name]:
            raise BrokenSeal(f"its file {name} is not what was written")


def _digests(directory: Path) -> dict[str, str]:
    found = {}
    for path in sorted(directory.glob("*/**/*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.relative_to(directory).as_posix()] = digest
    return found
