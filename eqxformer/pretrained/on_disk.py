"""A checkpoint's model whose numbers stay on disk: each array is read when someone asks for it.

`save` and `save_pretrained` ask for one array at a time, so that a checkpoint of any size is
written anew in the memory of its largest arrays.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.rebuild import with_arrays
from eqxformer.checkpoints.rules import Binding
from eqxformer.pretrained.checkpoint import Checkpoint

# A layer's experts are written one by one, those of its three projections in turn: none of the
# three stacks is to be read again for each of them.
_KEPT = 4


class OnDisk(jax.ShapeDtypeStruct):
    """The shape and type of an array, whose numbers NumPy gets by reading them."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, read: Callable[[], np.ndarray]) -> None:
        super().__init__(shape, dtype)
        self._read = read

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._read()


def on_disk(checkpoint: Checkpoint, dtype: DTypeLike | None = None) -> Any:
    """The model of a checkpoint with an `OnDisk` in place of every array.

    Arguments:
        dtype: the type that floating-point numbers are read as; the file's own if None.

    Raises `CheckpointError` where tensors that make one array are stored in several types, and
    `dtype` does not say which is meant; and on reading a number that `dtype` has no room for.
    """
    wanted = None if dtype is None else jnp.dtype(dtype)

    def read(binding: Binding) -> dict[str, np.ndarray]:
        theirs = [checkpoint.stored.read(name) for name in binding.theirs]
        moved = zip(binding.ours, binding.move.read(theirs, binding.shapes), strict=True)
        return {path: converted(path, numbers, wanted) for path, numbers in moved}

    several = functools.lru_cache(_KEPT)(read)
    arrays: dict[str, Any] = {}
    for binding in checkpoint.bindings:
        single = len(binding.ours) == len(binding.theirs) == 1
        numbers = functools.partial(read if single else several, binding)
        kind = _type(checkpoint, binding, wanted)
        for path, shape in zip(binding.ours, binding.shapes, strict=True):
            arrays[path] = OnDisk(shape, kind, lambda path=path, all=numbers: all()[path])
    return with_arrays(checkpoint.skeleton, arrays)


def converted(path: str, numbers: np.ndarray, dtype: Any) -> np.ndarray:
    """Numbers as `dtype`, if they are floating-point and it is not None.

    Raises `CheckpointError` for one that is finite and would not be any more.
    """
    if dtype is None or numbers.dtype == dtype or not jnp.issubdtype(numbers.dtype, jnp.floating):
        return numbers
    with np.errstate(over="ignore"):
        new = numbers.astype(dtype)
    if np.count_nonzero(np.isfinite(new)) < np.count_nonzero(np.isfinite(numbers)):
        most = float(np.abs(numbers[np.isfinite(numbers)].astype(np.float64)).max())
        raise CheckpointError(
            f"`{path}` has numbers as large as {most:.4g}, for which {dtype} has no room; "
            "choose bfloat16 or float32."
        )
    return new


def _type(checkpoint: Checkpoint, binding: Binding, dtype: Any) -> Any:
    """The type of a binding's arrays once they are read as `dtype`."""
    names = [checkpoint.stored.find(name) or name for name in binding.theirs]
    stored = {checkpoint.files.dtype(name) for name in names}
    if dtype is not None:
        stored = {dtype if jnp.issubdtype(each, jnp.floating) else each for each in stored}
    if len(stored) > 1:
        raise CheckpointError(
            f"{checkpoint.directory}: {', '.join(binding.theirs[:3])} make one array and are of "
            f"several types, {' and '.join(sorted(map(str, stored)))}; choose one for all."
        )
    return stored.pop()
