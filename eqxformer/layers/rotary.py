"""Rotary positions and the ways to stretch them over longer texts.

A head's numbers are read as pairs; the pair `i` at position `p` turns by the angle
`p * frequency[i]`, so that a score depends only on the distance of two tokens.
"""

import math
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from eqxformer.config import Config
from eqxformer.layers.norms import widen

Frequencies = Float[Array | np.ndarray, "*#batch pairs"]


class Scaling(Config):
    """A way to change the frequencies, for texts longer than those of the training.

    `by_length` says whether they depend on the length of the text, and so change as it grows.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp, numpy as np
        >>> class TwiceAsSlow(ef.Scaling):
        ...     def frequencies(self, base, width, length):
        ...         return base ** (-np.arange(0.0, width, 2) / width) / 2
        >>> print(TwiceAsSlow().frequencies(10_000.0, 4, jnp.array(8)))
        [0.5   0.005]
    """

    by_length: ClassVar[bool] = False

    def check(self) -> None:
        for name in ("factor", "original_length"):
            if getattr(self, name, 1) <= 0:
                raise ValueError(f"`{name}` must be positive; got {getattr(self, name)}.")

    def frequencies(self, base: float, width: int, length: Int[Array, "*batch"]) -> Frequencies:
        """The `width / 2` frequencies, given the rotary base and the length of each row's text."""
        raise NotImplementedError(f"{self.type_name} must define `frequencies`.")

    def magnitude(self) -> float:
        """What cosines and sines are multiplied by, so scores by its square."""
        return 1.0


class LinearScaling(Scaling):
    """Positions divided by `factor` (Chen et al. 2023, position interpolation).

    Arguments:
        factor: how many times as long as those of the training texts may be.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> print(ef.LinearScaling(4.0).frequencies(10_000.0, 4, jnp.array(8)))
        [0.25   0.0025]
    """

    factor: float

    def frequencies(self, base: float, width: int, length: Int[Array, "*batch"]) -> Frequencies:
        return plain_frequencies(base, width) / self.factor


class DynamicNTK(Scaling):
    """A base that grows with the text: `base * s^(width / (width - 2))`.

    `s = factor * n / n0 - factor + 1`, where `n` is the length of the text, never below the
    `n0 = original_length` of the training (bloc97 and emozilla 2023).

    Arguments:
        factor: how fast the base grows.
        original_length: tokens of the texts of the training.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> scaling = ef.DynamicNTK(factor=2.0, original_length=8)
        >>> print(scaling.frequencies(10_000.0, 4, jnp.array(16)).round(5))
        [1.      0.00333]
    """

    by_length: ClassVar[bool] = True

    factor: float
    original_length: int

    def frequencies(self, base: float, width: int, length: Int[Array, "*batch"]) -> Frequencies:
        n = jnp.maximum(length, self.original_length).astype(jnp.float32)[..., None]
        stretch = self.factor * n / self.original_length - (self.factor - 1.0)
        grown = base * stretch ** (width / max(width - 2, 1))  # one pair turns at 1 for any base
        exponents = np.arange(0, width, 2, dtype=np.float32) / width
        return grown ** -jnp.broadcast_to(exponents, (*length.shape, width // 2))


class Llama3Scaling(Scaling):
    """Slow pairs are divided by `factor`, fast ones kept, those between blended.

    With the wavelength `w = 2 pi / frequency` and `n0 = original_length`, a pair is slow where
    `w > n0 / low_frequency_factor` and fast where `w < n0 / high_frequency_factor`
    (Llama 3.1, Meta 2024).

    Arguments:
        factor: what the frequencies of slow pairs are divided by.
        low_frequency_factor, high_frequency_factor: how often slow pairs turn at the most, and fast
            ones at the least, over `original_length`.
        original_length: tokens of the texts of the training.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> scaling = ef.Llama3Scaling(factor=8.0, original_length=64)
        >>> print(scaling.frequencies(10_000.0, 4, jnp.array(16)))
        [1.      0.00125]
    """

    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192

    def frequencies(self, base: float, width: int, length: Int[Array, "*batch"]) -> Frequencies:
        plain = plain_frequencies(base, width)
        turns = self.original_length * plain / (2 * math.pi)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return kept * plain + (1.0 - kept) * plain / self.factor


class YaRN(Scaling):
    """Pairs that turn often are kept, those that turn rarely divided by `factor`, by a ramp.

    The ramp runs between the pairs that turn `fast` and `slow` times over `original_length`;
    scores grow by `magnitude^2` with `magnitude = 0.1 ln(factor) + 1` (Peng et al. 2023).
    `rounded` moves the ends of the ramp to whole pairs.

    Arguments:
        factor: what the frequencies of pairs are divided by that turn rarely.
        original_length: tokens of the texts of the training.
        fast, slow: turns over `original_length` between which the ramp runs.
        rounded: whether the ramp begins and ends at whole pairs.
        attention_factor: the magnitude, where it is not that of the formula.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> scaling = ef.YaRN(factor=4.0, original_length=512)
        >>> print(scaling.frequencies(10_000.0, 4, jnp.array(16)), round(scaling.magnitude(), 4))
        [1.     0.0025] 1.1386
    """

    factor: float
    original_length: int
    fast: float = 32.0
    slow: float = 1.0
    rounded: bool = True
    attention_factor: float | None = None

    def frequencies(self, base: float, width: int, length: Int[Array, "*batch"]) -> Frequencies:
        plain = plain_frequencies(base, width)
        low, high = self._pair(self.fast, base, width), self._pair(self.slow, base, width)
        if self.rounded:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        ramp = np.clip((np.arange(width // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
        return plain / self.factor * ramp + plain * (1.0 - ramp)

    def magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def _pair(self, turns: float, base: float, width: int) -> float:
        """The (fractional) pair that turns so many times over the original length."""
        return width * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))


class LongRoPE(Scaling):
    """One divisor per pair: `short` up to `original_length` tokens, `long` beyond.

    Ding et al. 2024. Cosines and sines grow by `sqrt(1 + ln(factor) / ln(original_length))`.

    Arguments:
        short, long: a divisor for each rotated pair.
        original_length: tokens of the texts of the training.
        factor: how many times as long texts may be; of the magnitude alone.
        attention_factor: the magnitude, where it is not that of the formula.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> scaling = ef.LongRoPE(short=(1.0, 1.0), long=(1.0, 4.0), original_length=8, factor=4.0)
        >>> for length in (8, 9):
        ...     print(scaling.frequencies(10_000.0, 4, jnp.array(length)))
        [1.   0.01]
        [1.     0.0025]
    """

    by_length: ClassVar[bool] = True

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_length: int
    factor: float
    attention_factor: float | None = None

    def frequencies(self, base: float, width: int, length: Int[Array, "*batch"]) -> Frequencies:
        for name, divisors in (("short", self.short), ("long", self.long)):
            if len(divisors) != width // 2:
                raise ValueError(
                    f"`LongRoPE.{name}` needs one number per rotated pair, {width // 2}; "
                    f"got {len(divisors)}."
                )
        plain = plain_frequencies(base, width)
        short, long = (
            jnp.broadcast_to(plain / np.asarray(d, np.float32), (*length.shape, width // 2))
            for d in (self.short, self.long)
        )
        return jnp.where(length[..., None] > self.original_length, long, short)

    def magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1:
            return 1.0
        return math.sqrt(1.0 + math.log(self.factor) / math.log(self.original_length))


class Rotary(Config):
    """Rotary position embedding (Su et al. 2021): a value, since it has no parameters.

    `fraction` of the head is rotated, the rest left as it is. In the `half` layout the pair `i`
    is `(x[i], x[i + width/2])` (Llama), in the `interleaved` one `(x[2i], x[2i+1])` (GPT-J).

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> rotary = ef.Rotary(base=10_000.0)
        >>> rotary(jnp.ones((1, 5, 8)), jnp.arange(5)).shape
        (1, 5, 8)
    """

    base: float = 10_000.0
    fraction: float = 1.0
    layout: Literal["half", "interleaved"] = "half"
    scaling: Scaling | None = None

    def check(self) -> None:
        if not 0.0 < self.fraction <= 1.0:
            raise ValueError(f"`fraction` must be above 0 and at most 1; got {self.fraction}.")
        if self.base <= 1.0:
            raise ValueError(f"`base` must be above 1; got {self.base}.")

    def width(self, head_dim: int) -> int:
        """How many numbers of a head are rotated; raises `ValueError` where that is odd."""
        width = int(head_dim * self.fraction)
        if width % 2 or not width:
            raise ValueError(
                f"Rotary positions turn pairs, so `head_dim * fraction` must be even and positive; "
                f"got head_dim={head_dim}, fraction={self.fraction}, that is {width}."
            )
        return width

    def __call__(
        self, x: Float[Array, "*batch heads seq head_dim"], positions: Int[Array, "*#batch seq"]
    ) -> Float[Array, "*batch heads seq head_dim"]:
        """`x` with every pair turned by its position; computed in float32."""
        width = self.width(x.shape[-1])
        cos, sin = self.tables(width, positions)
        shape = (*x.shape[:-3], 1, x.shape[-2], width // 2)
        turned, rest = widen(x[..., :width]), x[..., width:]
        cos, sin = (
            jnp.broadcast_to(t[..., None, :, :], shape).astype(turned.dtype) for t in (cos, sin)
        )
        if self.layout == "half":
            a, b = turned[..., : width // 2], turned[..., width // 2 :]
            turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
        else:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
            turned = turned.reshape(*x.shape[:-1], width)
        return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)

    def tables(
        self, width: int, positions: Int[Array, "*batch seq"]
    ) -> tuple[Float[Array, "*batch seq pairs"], Float[Array, "*batch seq pairs"]]:
        """Cosines and sines of every position and pair, in float32."""
        if self.scaling is None:
            frequencies, magnitude = plain_frequencies(self.base, width), 1.0
        else:
            length = positions.max(-1, initial=-1) + 1
            frequencies = self.scaling.frequencies(self.base, width, length)
            magnitude = self.scaling.magnitude()
        shape = (*positions.shape, width // 2)
        frequencies = jnp.asarray(frequencies, jnp.float32)[..., None, :]
        angles = positions.astype(jnp.float32)[..., None] * jnp.broadcast_to(frequencies, shape)
        return jnp.cos(angles) * magnitude, jnp.sin(angles) * magnitude


def plain_frequencies(base: float, width: int) -> Float[np.ndarray, " pairs"]:
    """`base^(-2i / width)` for the pairs `i`, in float32."""
    exponents = np.arange(0, width, 2, dtype=np.float64) / width
    return (base**-exponents).astype(np.float32)
