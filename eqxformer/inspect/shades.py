"""A matrix as a small picture in the terminal."""

import numpy as np
from jaxtyping import Array, Num

_BLOCKS = " ░▒▓█"


def shades(values: Num[Array, "rows columns"]) -> str:
    """The numbers as blocks, two characters each: the larger, the darker.

    The lightest block is the smallest number, or zero where none is below it; the darkest is the
    largest. What is not finite is `?`.

    Raises `ValueError` for more or fewer than two axes.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> print(ef.inspect.shades(jnp.array([[4, 0], [1, 3]])))
        ██
        ░░▓▓
    """
    numbers = np.asarray(values, np.float32)
    if numbers.ndim != 2:
        raise ValueError(f"A picture has two axes; got an array of shape {numbers.shape}.")
    finite = np.isfinite(numbers)
    kept = numbers[finite] if finite.any() else np.zeros(1, np.float32)
    least, most = min(float(kept.min()), 0.0), float(kept.max())
    share = (np.where(finite, numbers, least) - least) / max(most - least, 1e-30)
    levels = np.rint(share * (len(_BLOCKS) - 1)).astype(int)
    return "\n".join(
        "".join(
            2 * (_BLOCKS[level] if ok else "?") for level, ok in zip(*row, strict=True)
        ).rstrip()
        for row in zip(levels, finite, strict=True)
    )
