"""Numbers of a file on the devices that they belong to, and back from the devices of all hosts."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array

from eqxformer.constraints import fetched

ByName = Callable[[str, tuple[int, ...]], Sharding]


class Places(Protocol):
    """What knows where the arrays of any model go, such as a `Placement`."""

    def by_name(self, model: Any) -> ByName:
        """The sharding of each array of a model, given as shapes, by its name and shape."""
        ...


Where = Sharding | ByName | Places | None


def by_name(where: Where, model: Any) -> Callable[[str, tuple[int, ...]], Sharding | None]:
    """Where each array of a model goes by its name and shape; None for the default device.

    Arguments:
        where: one sharding for all, a function of an array's path and shape, or a `Placement`.
        model: its shapes.
    """
    if where is None or isinstance(where, Sharding):
        return lambda path, shape: where
    rules = getattr(where, "by_name", None)
    return where if rules is None else rules(model)  # pyright: ignore[reportReturnType]


def place(numbers: np.ndarray, sharding: Sharding | None) -> Array:
    """An array on its devices, each of which is given its own part alone; nothing is compiled."""
    if sharding is None:
        return jax.device_put(numbers)
    return jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])


def gathered(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays whose numbers this process can read: those that lie on other hosts too are fetched.

    A process then holds all of them; every process must ask.
    """

    def whole(array: Any) -> Any:
        elsewhere = isinstance(array, jax.Array) and not array.is_fully_addressable
        return fetched(array) if elsewhere else array

    return {name: whole(array) for name, array in arrays.items()}


@contextlib.contextmanager
def one_writes() -> Iterator[bool]:
    """Whether this process is the one that writes; all go on when it has done so, or has failed."""
    try:
        yield jax.process_index() == 0
    finally:
        if jax.process_count() > 1:
            from jax.experimental.multihost_utils import sync_global_devices

            sync_global_devices("eqxformer: written")
