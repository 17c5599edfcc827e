"""What changes logits before a token is chosen: small values, pure and usable under `jit`.

A processor is called as `processor(logits, seen)`. `first | then` is a processor that does one
after the other, and `processor | sampler` a sampler. Numbers are arrays, so that other numbers
compile nothing anew. What a processor forbids gets the logit `-inf`.

    >>> import eqxformer as ef, jax.numpy as jnp
    >>> logits = jnp.array([[0.0, 4.0, 3.0, 1.0]])
    >>> (ef.Suppress((1,)) | ef.Temperature(2.0) | ef.TopK(2))(logits)
    Array([[-inf, -inf,  1.5,  0.5]], dtype=float32)
"""

import abc
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from eqxformer.generation.following import Follower

if TYPE_CHECKING:
    from eqxformer.generation.samplers import Sampler


class Seen(eqx.Module):
    """What is known when a token is chosen: the tokens so far, and how many there may be.

        slot     0  1  2  3  4  5  6
        tokens   5  9  2  7  4  .  .      length 5, of which prompt 3; at the most, limit 7

    Arguments:
        tokens: each row's tokens from the left, without gaps; what is past `length` is arbitrary.
        length: how many tokens a row has now.
        prompt: how many of them were given, not made.
        limit: how many tokens a row will have at the most.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> seen = ef.Seen.start(jnp.array([[5, 9, 2]]), None, new=4).add(jnp.array([7]))
        >>> print(seen.tokens[:, :4], seen.newest(), seen.length, seen.new, seen.limit)
        [[5 9 2 7]] [7] [4] [1] [7]
    """

    tokens: Int[Array, "rows slots"]
    length: Int[Array, " rows"]
    prompt: Int[Array, " rows"]
    limit: Int[Array, " rows"]

    @staticmethod
    def start(
        prompts: Int[Array, "rows seq"], valid: Bool[Array, "rows seq"] | None, new: int
    ) -> "Seen":
        """What is known before the first of `new` tokens; `valid` is true for real tokens.

        Example:
            >>> import eqxformer as ef, jax.numpy as jnp
            >>> prompts = jnp.array([[0, 0, 7], [8, 9, 0]])
            >>> seen = ef.Seen.start(prompts, prompts > 0, new=2)
            >>> print(seen.tokens[:, :2], seen.length, seen.limit)
            [[7 0]
             [8 9]] [1 2] [3 4]
        """
        rows, seq = prompts.shape
        length = jnp.full(rows, seq, jnp.int32)
        if valid is not None:
            length = valid.sum(-1, dtype=jnp.int32)
            prompts = jnp.take_along_axis(prompts, jnp.argsort(~valid, axis=-1, stable=True), 1)
        tokens = jnp.pad(prompts, ((0, 0), (0, new))).astype(jnp.int32)
        return Seen(tokens, length, length, length + new)

    def add(self, tokens: Int[Array, " rows"], where: Bool[Array, " rows"] | None = None) -> "Seen":
        """What is known after one more token in each row, or in the rows `where` it is true."""
        rows = jnp.arange(tokens.shape[0])
        place, length = self.length, self.length + 1
        if where is not None:
            place = jnp.where(where, place, self.tokens.shape[1])
            length = jnp.where(where, length, self.length)
        longer = self.tokens.at[rows, place].set(tokens, mode="drop")
        return Seen(longer, length, self.prompt, self.limit)

    def newest(self) -> Int[Array, " rows"]:
        """The last token of each row."""
        return jnp.take_along_axis(self.tokens, self.length[:, None] - 1, axis=1)[:, 0]

    @property
    def new(self) -> Int[Array, " rows"]:
        """How many tokens have been made."""
        return self.length - self.prompt


class Processor(Follower):
    """A change of the logits, given the tokens so far.

    A processor gives back the dtype that it gets; it computes in float32 at least. A NaN stays a
    NaN. `first | then` does one after the other; `processor | sampler` chooses from what is left.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> class Double(ef.Processor):
        ...     def __call__(self, logits, seen=None):
        ...         return 2 * logits
        >>> (Double() | ef.TopK(1))(jnp.array([[1.0, 3.0]]))
        Array([[-inf,   6.]], dtype=float32)
    """

    @abc.abstractmethod
    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        """The changed logits; `seen` may be None for a processor that only looks at logits."""

    @overload
    def __or__(self, other: "Processor") -> "Chain": ...
    @overload
    def __or__(self, other: "Sampler") -> "Sampler": ...
    def __or__(self, other: Any) -> Any:
        if isinstance(other, Processor):
            return Chain(*_parts(self), *_parts(other))
        return NotImplemented  # a sampler knows how to come after a processor


class Chain(Processor):
    """Processors one after the other, from left to right; written `first | then`.

    Example:
        >>> import eqxformer as ef
        >>> chain = ef.Temperature(0.7) | ef.TopK(50) | ef.TopP(0.9)
        >>> [type(part).__name__ for part in chain.parts]
        ['Temperature', 'TopK', 'TopP']
    """

    parts: tuple[Processor, ...]

    def __init__(self, *parts: Processor):
        self.parts = parts

    def begin(self, rows: int) -> "Chain":
        return Chain(*(part.begin(rows) for part in self.parts))

    def after(self, tokens: Int[Array, " rows"]) -> "Chain":
        return Chain(*(part.after(tokens) for part in self.parts))

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        for part in self.parts:
            logits = part(logits, seen)
        return logits


class Process(Processor):
    """A function of your own: `function(logits, seen)` gives the changed logits.

    The function is traced, so it must be made of JAX operations. Let it be defined once: another
    function, also one of the same text, compiles anew. An `equinox.Module` with arrays does not.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> even = ef.Process(lambda logits, seen: logits.at[:, 1::2].set(-jnp.inf))
        >>> even(jnp.array([[1.0, 2.0, 3.0]]))
        Array([[  1., -inf,   3.]], dtype=float32)
    """

    function: Callable[[Array, Any], Array]

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        changed = self.function(logits, seen)
        shape, dtype = getattr(changed, "shape", None), getattr(changed, "dtype", None)
        if shape != logits.shape or dtype != logits.dtype:
            raise ValueError(
                "The function of `Process` must give back logits of the shape and dtype it gets, "
                f"{logits.dtype}{list(logits.shape)}; got {type(changed).__name__} with shape "
                f"{shape} and dtype {dtype}."
            )
        return changed


def _parts(processor: Processor) -> tuple[Processor, ...]:
    return processor.parts if isinstance(processor, Chain) else (processor,)


def history(seen: Seen | None, processor: Processor) -> Seen:
    """`seen`, which this processor cannot do without."""
    if seen is None:
        name = type(processor).__name__
        raise ValueError(f"`{name}` looks at the tokens so far and needs `seen`; got None.")
    return seen


def number(name: str, value: float, fits: bool, must: str) -> Float[Array, ""]:
    """A setting as an array, so that another value compiles nothing anew.

    Raises `ValueError` unless it is finite and `fits`.
    """
    if not (fits and math.isfinite(value)):
        raise ValueError(f"`{name}` must be {must}; got {value}.")
    return jnp.asarray(value, jnp.float32)


def whole(name: str, value: int, least: int) -> Int[Array, ""]:
    """A count as an array; raises `ValueError` if it is below `least`."""
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}; got {value}.")
    return jnp.asarray(value, jnp.int32)


def wide(logits: Float[Array, "rows vocab"]) -> Float[Array, "rows vocab"]:
    """The logits in float32, or in float64 if they are that already."""
    return logits.astype(np.promote_types(logits.dtype, np.float32))
