"""How a token is chosen from logits: small values, pure and usable under `jit`.

A processor before a sampler is a sampler: `RepetitionPenalty(1.2) | Greedy()`. One in the place of
a sampler draws from what it leaves: `TopP(0.9)` is `TopP(0.9) | Sample()`.
"""

import abc

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key

from eqxformer.constraints import fetched
from eqxformer.generation._selection import below_largest
from eqxformer.generation.following import Follower
from eqxformer.generation.processors import Processor, Seen, wide
from eqxformer.generation.warpers import Temperature, TopK

BLOCK = 256  # numbers of a row that are added up first, so that few are added up one by one


class Sampler(Follower):
    """A choice of one token per row: the likeliest of what `process` gives, or one drawn from it.

    A row whose logits have no largest one that is finite, since everything is forbidden or since
    the model gave NaN, has no token: a `ValueError` when called eagerly, and -1 under `jit`.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> class Unlikeliest(ef.Sampler):
        ...     needs_key = False
        ...     def process(self, logits, seen=None):
        ...         return -logits
        >>> (ef.Temperature(0.5) | Unlikeliest())(jnp.array([[3.0, 1.0, 2.0]]))
        Array([1], dtype=int32)
    """

    @abc.abstractmethod
    def process(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        """The logits that the choice is made from."""

    @property
    @abc.abstractmethod
    def needs_key(self) -> bool:
        """Whether the choice is random."""

    def __call__(
        self,
        logits: Float[Array, "rows vocab"],
        keys: Key[Array, " rows"] | None = None,
        seen: Seen | None = None,
    ) -> Int[Array, " rows"]:
        """The chosen ids; `keys` holds a key per row, on which alone that row's choice depends."""
        logits = self.process(wide(logits), seen)
        if not self.needs_key:
            return _settled(likeliest(logits))
        if keys is None:
            name = type(self).__name__
            raise ValueError(f"`{name}` draws at random and needs a key per row; got none.")
        return _settled(draw(logits, keys))

    def __ror__(self, processor: Processor) -> "Piped":
        return Piped(processor, self)


class Greedy(Sampler):
    """The token with the largest logit; the first of equal ones.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> (ef.Suppress((1,)) | ef.Greedy())(jnp.array([[1.0, 3.0, 2.0]]))
        Array([2], dtype=int32)
    """

    @property
    def needs_key(self) -> bool:
        return False

    def process(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        return logits


class Sample(Sampler):
    """A token drawn from `softmax(logits / temperature)`, of the `top_k` likeliest if given.

    That is `Temperature(temperature) | TopK(top_k)` as a sampler. Another `temperature` or `top_k`
    compiles nothing anew.

    Raises `ValueError` for a temperature that is not above 0, or a `top_k` below 1.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> keys = jax.random.split(jax.random.key(0), 1)
        >>> ef.Sample(temperature=0.8, top_k=1)(jnp.array([[1.0, 3.0, 2.0]]), keys)
        Array([1], dtype=int32)
    """

    processor: Processor

    def __init__(self, temperature: float = 1.0, top_k: int | None = None):
        if top_k is not None and top_k < 1:
            raise ValueError(f"`top_k` must be positive; got {top_k}.")
        warm = Temperature(temperature)
        self.processor = warm if top_k is None else warm | TopK(top_k)

    @property
    def needs_key(self) -> bool:
        return True

    def process(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        return self.processor(logits, seen)


class Piped(Sampler):
    """A sampler that sees what a processor leaves; made by `processor | sampler`."""

    processor: Processor
    sampler: Sampler

    def begin(self, rows: int) -> "Piped":
        return Piped(self.processor.begin(rows), self.sampler.begin(rows))

    def after(self, tokens: Int[Array, " rows"]) -> "Piped":
        return Piped(self.processor.after(tokens), self.sampler.after(tokens))

    @property
    def needs_key(self) -> bool:
        return self.sampler.needs_key

    def process(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        return self.sampler.process(self.processor(logits, seen), seen)


def as_sampler(choice: Sampler | Processor) -> Sampler:
    """A sampler as it is; a processor as one that draws from what it leaves."""
    return choice if isinstance(choice, Sampler) else choice | Sample()


def likeliest(logits: Float[Array, "rows vocab"]) -> Int[Array, " rows"]:
    """The first of the largest logits of each row; -1 if that is not finite.

    On a CPU, the largest number and then its place take a tenth of the time of `argmax`.
    """
    largest = logits.max(-1, keepdims=True)
    place = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    first = jnp.where(logits == largest, place, logits.shape[-1]).min(-1)
    return jnp.where(jnp.isfinite(largest[:, 0]), first, -1)


def draw(logits: Float[Array, "rows vocab"], keys: Key[Array, " rows"]) -> Int[Array, " rows"]:
    """An id drawn from `softmax(logits)` of each row by its own key; -1 if none is finite.

    Two uniform numbers a row choose a block of the vocabulary by its share, and an id of the block
    by its share of that. `jax.random.categorical` would need a number for each id: at a vocabulary
    of 50,000, twenty times the time on a CPU. An id of probability zero is never drawn.
    """
    (rows, vocab), keys = logits.shape, drawing_apart(keys)
    weights = jnp.exp(below_largest(logits))
    blocks = jnp.pad(weights, ((0, 0), (0, -vocab % BLOCK))).reshape(rows, -1, BLOCK)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,), logits.dtype))(keys)
    block = _pick(blocks.sum(-1), uniform[:, :1])
    chosen = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    ids = block * BLOCK + _pick(chosen, uniform[:, 1:])
    return jnp.where(jnp.isfinite(logits.max(-1)), ids, -1)


def drawing_apart(keys: Key[Array, "*rows"]) -> Key[Array, "*rows"]:
    """The keys as such that under `vmap` each draws by itself alone, wherever it stands.

    Those of `rbg` and `unsafe_rbg` do not: there, the first of them draws for all.
    """
    return _apart(keys) if jax.random.key_impl(keys) in ("rbg", "unsafe_rbg") else keys


@jax.jit
def _apart(keys: Key[Array, "*rows"]) -> Key[Array, "*rows"]:
    """Keys of `threefry2x32`, in which all four words of each key are folded."""

    def folded(words: Array) -> Array:
        key = jax.random.wrap_key_data(words[:2], impl="threefry2x32")
        return jax.random.fold_in(jax.random.fold_in(key, words[2]), words[3])

    return jax.vmap(folded)(jax.random.key_data(keys).reshape(-1, 4)).reshape(keys.shape)


def _pick(weights: Float[Array, "rows places"], uniform: Float[Array, "rows 1"]) -> Array:
    return place_of(uniform, weights, jnp.cumsum(weights, axis=-1))


def place_of(
    uniform: Float[Array, "rows 1"],
    weights: Float[Array, "rows places"],
    sums: Float[Array, "rows places"],
) -> Int[Array, " rows"]:
    """The first place at which the sum of the weights so far exceeds `uniform` of all of them."""
    # Added up in parallel and rounded, a sum may rise or fall where there is no weight.
    sums = jnp.where(weights > 0, sums, jnp.zeros_like(sums))
    return jnp.argmax(sums > uniform * sums.max(-1, keepdims=True), axis=-1).astype(jnp.int32)


def _settled(ids: Int[Array, " rows"]) -> Int[Array, " rows"]:
    """The ids; where they can be seen, a row without one is an error."""
    if not isinstance(ids, Tracer) and (rows := np.flatnonzero(fetched(ids) < 0)).size:
        raise ValueError(nothing_to_choose(int(rows[0])))
    return ids


def nothing_to_choose(row: int) -> str:
    """What to say of a row that has no token."""
    return (
        f"Row {row} has no token to choose: its logits are NaN or infinite, or everything is "
        "forbidden by the processors together, of which one has to ask for less."
    )
