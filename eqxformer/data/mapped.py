"""Arrays in files, mapped when they are looked at: any number of files, with few of them open.

A map holds a descriptor of its file, of which a process has about a thousand. It is pickled as the
name of the file and not as its content, since workers that read ahead are sent what they read from.
"""

import mmap
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

_MOST = 64  # maps that stay after they were looked at


class Mapped:
    """Where an array lies in a file; `array` is the array itself, mapped and only to be read."""

    def __init__(self, file: Path, dtype: str, offset: int, shape: tuple[int, ...]) -> None:
        self._place = (file, dtype, offset, shape)
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
        made = cls(file, array.dtype.str, array.offset, array.shape)
        made._array = array
        _ = made.array
        return made

    @property
    def array(self) -> Shaped[np.ndarray, "..."]:
        """The array; those of other files that were looked at long ago are let go."""
        with _lock:
            if self._array is None:
                file, dtype, offset, shape = self._place
                self._array = np.memmap(file, dtype, "r", offset, shape)
            array = self._array
            _open.pop(id(self), None)
            _open[id(self)] = self
            while len(_open) > _MOST:
                oldest = next(iter(_open.values()))
                del _open[id(oldest)]
                oldest._array = None
            return array

    def __reduce__(self) -> Any:
        return Mapped, self._place


_lock = threading.Lock()
# In the order in which they were looked at last; those that nobody has any more are not kept.
_open: "weakref.WeakValueDictionary[int, Mapped]" = weakref.WeakValueDictionary()


def array_of(held: Mapped | np.ndarray) -> Shaped[np.ndarray, "..."]:
    """The array of what `Mapped.of` gave."""
    return held.array if isinstance(held, Mapped) else held
