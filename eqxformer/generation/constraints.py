"""Processors that forbid tokens, or demand them.

A forbidden token has the logit `-inf`. Where nothing is left, all of a row is `-inf`: no token is
then chosen in its place, and a sampler says so.
"""

from collections.abc import Iterable, Mapping, Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from eqxformer.generation._token_ids import Phrases, TokenIds, ban, newest_tokens, some_ids
from eqxformer.generation.processors import Processor, Seen, history, whole


class NoRepeatNGram(Processor):
    """Forbids every token that would complete `size` tokens that already stand in the row so.

    The prompt counts. A `size` of 1 forbids every token seen; another `size` compiles anew.

    Raises `ValueError` for a size below 1.

    Source: Paulus et al. 2017, A Deep Reinforced Model for Abstractive Summarization (arXiv
    1705.04304), for trigrams.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> seen = ef.Seen.start(jnp.array([[0, 1, 2, 0, 1]]), None, new=1)
        >>> ef.NoRepeatNGram(3)(jnp.zeros((1, 4)), seen)  # 0 1 2 has been there
        Array([[  0.,   0., -inf,   0.]], dtype=float32)
    """

    size: int = eqx.field(static=True)

    def __init__(self, size: int):
        whole("size", size, 1)
        self.size = size

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        seen, before = history(seen, self), self.size - 1
        starts = seen.tokens.shape[1] - before
        if starts < 1:
            return logits
        newest, _ = newest_tokens(seen, before)
        same = jnp.arange(starts, dtype=jnp.int32)[None] + before < seen.length[:, None]
        for i in range(before):
            same &= seen.tokens[:, i : i + starts] == newest[:, i : i + 1]
        return ban(logits, seen.tokens[:, before:], same)


class BadWords(Processor):
    """Forbids phrases: the last token of one, in a row that ends with all before it.

    Arguments:
        words: phrases of token ids; one of a single id is forbidden everywhere. Others, as many
            and as long, compile nothing anew.

    Raises `ValueError` for an empty phrase or an id outside the vocabulary.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> seen = ef.Seen.start(jnp.array([[0, 1], [1, 0]]), None, new=1)
        >>> ef.BadWords(((1, 2), (3,)))(jnp.zeros((2, 4)), seen)
        Array([[  0.,   0., -inf, -inf],
               [  0.,   0.,   0., -inf]], dtype=float32)
    """

    phrases: Phrases

    def __init__(self, words: Iterable[Sequence[int]]):
        self.phrases = Phrases(words, "BadWords")

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        last, where = self.phrases.last, jnp.ones((1, 1), bool)
        if not self.phrases.single:
            where = self.phrases.reached(history(seen, self))
        return last.guard(self.phrases.before.guard(ban(logits, last.array[None], where)))


class Suppress(Processor):
    """Forbids some tokens at every step.

    Raises `ValueError` for an id outside the vocabulary. Other ids, as many, compile nothing anew.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> ef.Suppress((0, 2))(jnp.zeros((1, 4)))
        Array([[-inf,   0., -inf,   0.]], dtype=float32)
    """

    ids: TokenIds

    def __init__(self, ids: Sequence[int]):
        self.ids = TokenIds(ids, "Suppress")

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        return self.ids.guard(ban(logits, self.ids.array[None], jnp.ones((1, 1), bool)))


class SuppressAtBegin(Processor):
    """Forbids some tokens as the first that is made.

    Arguments:
        ids: the tokens. Others, as many, compile nothing anew.
        step: at which step, from 0; 1 where the first token is forced.

    Raises `ValueError` for a negative step or an id outside the vocabulary.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> seen = ef.Seen.start(jnp.array([[1, 3]]), None, new=2)
        >>> ef.SuppressAtBegin((0, 2))(jnp.zeros((1, 4)), seen)
        Array([[-inf,   0., -inf,   0.]], dtype=float32)
    """

    ids: TokenIds
    step: Int[Array, ""]

    def __init__(self, ids: Sequence[int], *, step: int = 0):
        self.ids = TokenIds(ids, "SuppressAtBegin")
        self.step = whole("step", step, 0)

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        now = history(seen, self).new == self.step
        return self.ids.guard(ban(logits, self.ids.array[None], now[:, None]))


class MinLength(Processor):
    """Forbids to stop while a row has fewer than `length` tokens, those of its prompt included.

    Arguments:
        length: of an encoder-decoder, the tokens of the target count, with the one it starts from.
        stop: the ids that would end the row. Others, as many, compile nothing anew.

    Raises `ValueError` for a negative length, no ids, or an id outside the vocabulary.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> seen = ef.Seen.start(jnp.array([[1, 3]]), None, new=2)
        >>> ef.MinLength(3, stop=(0,))(jnp.zeros((1, 4)), seen)
        Array([[-inf,   0.,   0.,   0.]], dtype=float32)
    """

    length: Int[Array, ""]
    stop: TokenIds

    def __init__(self, length: int, stop: Sequence[int]):
        self.length = whole("length", length, 0)
        self.stop = some_ids(stop, "MinLength")

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        short = history(seen, self).length < self.length
        return self.stop.guard(ban(logits, self.stop.array[None], short[:, None]))


class MinNewTokens(Processor):
    """Forbids to stop before `count` tokens have been made.

    Arguments:
        count: how many.
        stop: the ids that would end the row. Others, as many, compile nothing anew.

    Raises `ValueError` for a negative count, no ids, or an id outside the vocabulary.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> seen = ef.Seen.start(jnp.array([[1, 3]]), None, new=2)
        >>> ef.MinNewTokens(1, stop=(0,))(jnp.zeros((1, 4)), seen)
        Array([[-inf,   0.,   0.,   0.]], dtype=float32)
    """

    count: Int[Array, ""]
    stop: TokenIds

    def __init__(self, count: int, stop: Sequence[int]):
        self.count = whole("count", count, 0)
        self.stop = some_ids(stop, "MinNewTokens")

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        short = history(seen, self).new < self.count
        return self.stop.guard(ban(logits, self.stop.array[None], short[:, None]))


class Force(Processor):
    """Demands a token at a step: its logit becomes 0 and every other one `-inf`.

    Arguments:
        ids: the token by step, or several of which one has to come. Steps count the tokens made,
            from 0; negative ones count from the end, so that `{0: begin, -1: end}` forces the
            first token and the last that there may be. Where two steps are the same, that from
            the end counts. Others, as many, compile nothing anew.

    Raises `ValueError` for a step without a token or an id outside the vocabulary.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> seen = ef.Seen.start(jnp.array([[1, 3]]), None, new=2)
        >>> force = ef.Force({0: 2, -1: 0})
        >>> force(jnp.ones((1, 4)), seen), force(jnp.ones((1, 4)), seen.add(jnp.array([2])))
        (Array([[-inf, -inf,   0., -inf]], dtype=float32),
         Array([[  0., -inf, -inf, -inf]], dtype=float32))
    """

    steps: Int[Array, " demands"]
    ids: TokenIds

    def __init__(self, ids: Mapping[int, int | Sequence[int]]):
        demands = {
            step: (id,) if isinstance(id, int | np.integer) else tuple(id)
            for step, id in ids.items()
        }
        for step, several in demands.items():
            if not several:
                raise ValueError(f"`Force` needs a token for each step; got none for {step}.")
        steps = [step for step, several in demands.items() for _ in several]
        self.steps = jnp.asarray(steps, jnp.int32)
        self.ids = TokenIds([id for several in demands.values() for id in several], "Force")

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        seen, rows = history(seen, self), jnp.arange(logits.shape[0])[:, None]
        steps, from_end = self.steps[None], self.steps[None] < 0
        steps = jnp.where(from_end, steps + (seen.limit - seen.prompt)[:, None], steps)
        now = steps == seen.new[:, None]
        ending = now & from_end
        now = jnp.where(ending.any(-1, keepdims=True), ending, now)
        ids = jnp.broadcast_to(self.ids.array[None], now.shape)
        allowed = jnp.zeros(logits.shape, bool).at[rows, ids].max(now, mode="drop")
        forced = jnp.where(allowed, 0.0, -jnp.inf).astype(logits.dtype)
        return self.ids.guard(jnp.where(now.any(-1, keepdims=True), forced, logits))
