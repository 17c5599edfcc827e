"""Files of a checkpoint, opened only where they are plain files inside its directory."""

import contextlib
import io
import os
import pathlib
import reprlib
import stat
from collections.abc import Iterator
from typing import Any

from eqxformer.checkpoints.errors import CheckpointError, MissingFile

# Which file it is and when it last changed: device, number, size in bytes, time.
Stamp = tuple[int, int, int, int]

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# A pipe would be waited for without it; Windows has neither the pipes nor the flag.
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80


def shown(value: Any) -> str:
    """A value from a file as one short line: control characters escaped, the middle left out."""
    return _short.repr(value)


def contained(directory: pathlib.Path, name: str) -> pathlib.Path:
    """The path of a file of a checkpoint, which must lie in its directory.

    A link may lead elsewhere in the directory, or to the `blobs` of the hub cache that the
    directory is a snapshot in. Raises `CheckpointError` for one that leads anywhere else and
    `MissingFile` for one that leads nowhere.
    """
    path = directory / name
    try:
        home, real = (pathlib.Path(os.path.realpath(each)) for each in (directory, path))
        linked = path.is_symlink()
        if linked and not real.is_relative_to(home) and not _in_blobs(home, real):
            raise CheckpointError(
                f"{path} is a link to {real}, which is outside of the checkpoint's directory; "
                "put the file itself there."
            )
        if linked and not real.exists():
            raise MissingFile(f"{path} is a link to {real}, which is not there.")
    except MissingFile:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    return path


def _in_blobs(home: pathlib.Path, real: pathlib.Path) -> bool:
    """Whether `home` is `REPOSITORY/snapshots/REVISION` or below, `real` in `REPOSITORY/blobs`."""
    above = (each for each in home.parents if each.name == "snapshots")
    snapshots = next(above, None)
    return snapshots is not None and real.is_relative_to(snapshots.parent / "blobs")


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[tuple[io.FileIO, Stamp]]:
    """A plain file to read and its stamp; anything else is refused, and never waited for."""
    try:
        _refuse_special(path, os.stat(path))
        file = io.FileIO(os.open(path, os.O_RDONLY | _NO_WAITING | _BINARY))
    except FileNotFoundError:
        raise MissingFile(f"No {path.name} in {path.parent}; is this a saved model?") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    with file:
        status = os.fstat(file.fileno())
        _refuse_special(path, status)
        yield file, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def read_into(path: pathlib.Path, file: io.FileIO, start: int, memory: memoryview) -> None:
    """Fills `memory` with the bytes of a file from `start` on."""
    done = 0
    try:
        file.seek(start)
        while done < len(memory):
            count = file.readinto(memory[done:])  # at most 2 GiB at a time
            if not count:
                raise CheckpointError(f"{path} ended {len(memory) - done} bytes too early.")
            done += count
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None


def _refuse_special(path: pathlib.Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((what for test, what in _KINDS if test(status.st_mode)), "something special")
        raise CheckpointError(f"{path} must be a file; it is {kind}.")
