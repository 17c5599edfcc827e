"""Arrays in files, mapped when they are looked at: any number of files, with few of them open.

A map holds a descriptor of its file, of which a process has about a thousand. It is pickled as the
name of the file and not as its content, since workers that read ahead are sent what they read from.
"""

import mmap
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

try:
    import resource
except ImportError:  # Windows
    resource = None

_LEAST = 64  # maps that stay after they were looked at, at least


class Mapped:
    """Where an array lies in a file; `array` is the array itself, mapped and only to be read.

    Arguments:
        file: where it is.
        dtype, offset, shape: of the array in it.
        stamp: size and time of the file when it was first mapped; another one is refused later.
    """

    def __init__(
        self, file: Path, dtype: str, offset: int, shape: tuple[int, ...], stamp: tuple[int, int]
    ) -> None:
        self._place = (file, dtype, offset, shape, stamp)
        self._array: np.ndarray | None = None

    @classmethod
    def of(cls, array: Shaped[np.ndarray, "..."]) -> "Mapped | np.ndarray":
        """The place of a whole map that is only read; any other array as it is."""
        # Of a part of a map, NumPy does not know where in the file it begins.
        if not isinstance(array, np.memmap) or not isinstance(array.base, mmap.mmap):
            return array
        if array.mode != "r" or array.filename is None or not array.flags.c_contiguous:
            return array
        file = Path(array.filename).absolute()
        made = cls(file, array.dtype.str, array.offset, array.shape, _stamp(file))
        made._array = array
        _used(made)
        return made

    @property
    def array(self) -> Shaped[np.ndarray, "..."]:
        """The array; those of other files that were looked at long ago are let go.

        Raises `ValueError` for a file that is not the one it was.
        """
        array = self._array
        if array is None:
            file, dtype, offset, shape, stamp = self._place
            if _stamp(file) != stamp:
                raise ValueError(f"`{file}` has changed since it was opened; open it anew.")
            array = self._array = np.memmap(file, dtype, "r", offset, shape)
        _used(self)
        return array

    def let_go(self) -> None:
        """Closes the file, once nobody holds the array any more."""
        self._array = None

    def __reduce__(self) -> Any:
        return Mapped, self._place


def array_of(held: Mapped | np.ndarray) -> Shaped[np.ndarray, "..."]:
    """The array of what `Mapped.of` gave."""
    return held.array if isinstance(held, Mapped) else held


# In the order in which they were looked at last; those that nobody has any more are not kept.
_open: "weakref.WeakValueDictionary[int, Mapped]" = weakref.WeakValueDictionary()
_lock = threading.Lock()


def _used(mapped: Mapped) -> None:
    """Notes that one was looked at, and lets go of those that were so long ago."""
    with _lock:
        _open.pop(id(mapped), None)
        _open[id(mapped)] = mapped
        while len(_open) > _most():
            oldest = next(iter(_open.values()))
            del _open[id(oldest)]
            oldest.let_go()


def _most() -> int:
    """How many stay: a quarter of the files that this process may have open."""
    if resource is None:
        return _LEAST
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(_LEAST, 0 if soft == resource.RLIM_INFINITY else soft // 4)


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _unlocked() -> None:
    """For a process that was forked, maybe while a thread of its parent had the lock."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlocked)
