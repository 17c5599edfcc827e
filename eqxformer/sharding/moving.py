"""Arrays that are there, moved to where they belong, with one process or several."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding


def moved(x: Any, where: NamedSharding) -> Any:
    """An array on the devices of a mesh, each of which is given its own part alone.

    Where there are several processes, all of them give the same numbers.
    """
    if jax.process_count() == 1:
        return jax.device_put(x, where)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=where)(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        numbers = moved(jax.random.key_data(x), where)
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(x))
    here = np.asarray(x)
    return jax.make_array_from_callback(here.shape, where, lambda index: here[index])
