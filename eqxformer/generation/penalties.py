"""Processors that make tokens likelier or less likely, without forbidding them."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from eqxformer.generation._token_ids import Phrases, TokenIds, some_ids
from eqxformer.generation.processors import Processor, Seen, history, number, whole, wide


class RepetitionPenalty(Processor):
    """Divides the logit of every token seen by `penalty` if it is positive, else multiplies it.

    Seen is what stands in the prompt or has been made; how often does not matter.

    Arguments:
        penalty: above 0. Above 1 discourages repetition (the source uses 1.2), below 1 invites it.

    Raises `ValueError` for a penalty that is not above 0.

    Source: Keskar et al. 2019, CTRL (arXiv 1909.05858), which only divides.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> seen = ef.Seen.start(jnp.array([[0, 1]]), None, new=1)
        >>> ef.RepetitionPenalty(2.0)(jnp.array([[3.0, -3.0, 3.0]]), seen)
        Array([[ 1.5, -6. ,  3. ]], dtype=float32)
    """

    penalty: Float[Array, ""]

    def __init__(self, penalty: float):
        self.penalty = number("penalty", penalty, penalty > 0, "above 0 and finite")

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        numbers, counted = wide(logits), _counts(logits, history(seen, self))
        penalty = self.penalty.astype(numbers.dtype)
        less = jnp.where(numbers < 0, numbers * penalty, numbers / penalty)
        return jnp.where(counted > 0, less, numbers).astype(logits.dtype)


class PresencePenalty(Processor):
    """Subtracts `penalty` from the logit of every token that has been made; the prompt is free.

    Arguments:
        penalty: in logits; below 0 invites repetition.

    Raises `ValueError` for a penalty that is not finite.

    Source: the completions interface of OpenAI, `presence_penalty`.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> seen = ef.Seen.start(jnp.array([[0]]), None, new=3).add(jnp.array([1]))
        >>> ef.PresencePenalty(0.5)(jnp.array([[3.0, 3.0, 3.0]]), seen)
        Array([[3. , 2.5, 3. ]], dtype=float32)
    """

    penalty: Float[Array, ""]

    def __init__(self, penalty: float):
        self.penalty = number("penalty", penalty, True, "finite")

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        numbers, counted = wide(logits), _counts(logits, history(seen, self), made=True)
        less = numbers - self.penalty.astype(numbers.dtype)
        return jnp.where(counted > 0, less, numbers).astype(logits.dtype)


class FrequencyPenalty(Processor):
    """Subtracts `penalty` from a token's logit for each time it was made; the prompt is free.

    Arguments:
        penalty: in logits; below 0 invites repetition.

    Raises `ValueError` for a penalty that is not finite.

    Source: the completions interface of OpenAI, `frequency_penalty`.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> seen = ef.Seen.start(jnp.array([[0]]), None, new=3)
        >>> seen = seen.add(jnp.array([1])).add(jnp.array([1]))
        >>> ef.FrequencyPenalty(0.5)(jnp.array([[3.0, 3.0, 3.0]]), seen)
        Array([[3., 2., 3.]], dtype=float32)
    """

    penalty: Float[Array, ""]

    def __init__(self, penalty: float):
        self.penalty = number("penalty", penalty, True, "finite")

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        numbers, counted = wide(logits), _counts(logits, history(seen, self), made=True)
        penalty = self.penalty.astype(numbers.dtype)
        return (numbers - penalty * counted.astype(numbers.dtype)).astype(logits.dtype)


class LogitBias(Processor):
    """Adds a number to the logit of a token, always or where a phrase would be completed by it.

    Arguments:
        biases: by token id, or by phrase: the bias of `(1, 2, 3)` is added to the logit of 3 in a
            row that ends with 1, 2. What several phrases say about a token is added up. `-inf`
            forbids. Other ids and numbers, as many and as long, compile nothing anew.

    Raises `ValueError` for a bias that is NaN or `inf`, an empty phrase, or an id outside the
    vocabulary.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> seen = ef.Seen.start(jnp.array([[1], [2]]), None, new=1)
        >>> ef.LogitBias({0: 3.0, (1, 2): -4.0})(jnp.zeros((2, 3)), seen)
        Array([[ 3.,  0., -4.],
               [ 3.,  0.,  0.]], dtype=float32)
    """

    phrases: Phrases
    biases: Float[Array, " phrases"]

    def __init__(self, biases: Mapping[int | tuple[int, ...], float]):
        for ids, bias in biases.items():
            if not bias < float("inf"):
                raise ValueError(
                    f"The biases of `LogitBias` must be finite or -inf; got {bias} for {ids}. To "
                    "demand a token, use `Force`."
                )
        keys = ((ids,) if isinstance(ids, int | np.integer) else ids for ids in biases)
        self.phrases = Phrases(keys, "LogitBias")
        self.biases = jnp.asarray(list(biases.values()), jnp.float32)

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        numbers, rows = wide(logits), jnp.arange(logits.shape[0])[:, None]
        added = jnp.broadcast_to(self.biases[None], (logits.shape[0], self.biases.shape[0]))
        if not self.phrases.single:
            reached = self.phrases.reached(history(seen, self))
            added = jnp.where(reached, added, jnp.zeros_like(added))
        last = jnp.broadcast_to(self.phrases.last.array[None], added.shape)
        numbers = numbers.at[rows, last].add(added.astype(numbers.dtype), mode="drop")
        for ids in (self.phrases.before, self.phrases.last):
            numbers = ids.guard(numbers)
        return numbers.astype(logits.dtype)


class ExponentialLengthPenalty(Processor):
    """Adds `|logit| * (factor ** (tokens made - begin) - 1)` to the ids that would end a row.

    From `begin` tokens on, that is, so that an end becomes likelier with every token.

    Arguments:
        begin: how many tokens may be made before.
        factor: above 0; above 1 for an end that becomes likelier.
        stop: the ids that would end the row. Others, as many, compile nothing anew.

    Raises `ValueError` for numbers outside of these bounds, no ids, or an id outside the
    vocabulary.

    Source: transformers, `exponential_decay_length_penalty`.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> seen = ef.Seen.start(jnp.array([[1]]), None, new=3)
        >>> seen = seen.add(jnp.array([1])).add(jnp.array([1]))
        >>> ef.ExponentialLengthPenalty(1, 1.5, stop=(0,))(jnp.array([[-2.0, 3.0]]), seen)
        Array([[-1.,  3.]], dtype=float32)
    """

    begin_at: Int[Array, ""]
    factor: Float[Array, ""]
    stop: TokenIds

    def __init__(self, begin: int, factor: float, stop: Sequence[int]):
        self.begin_at = whole("begin", begin, 0)
        self.factor = number("factor", factor, factor > 0, "above 0 and finite")
        self.stop = some_ids(stop, "ExponentialLengthPenalty")

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        numbers, rows = wide(logits), jnp.arange(logits.shape[0])[:, None]
        past = jnp.maximum(history(seen, self).new - self.begin_at, 0).astype(numbers.dtype)
        ids = jnp.broadcast_to(self.stop.array[None], (logits.shape[0], self.stop.array.shape[0]))
        ends = numbers.at[rows, ids].get(mode="fill", fill_value=-jnp.inf)
        more = jnp.abs(ends) * (self.factor.astype(numbers.dtype) ** past - 1)[:, None]
        ends = jnp.where(jnp.isfinite(ends), ends + more, ends)
        numbers = numbers.at[rows, ids].set(ends, mode="drop")
        return self.stop.guard(numbers.astype(logits.dtype))


def _counts(logits: Array, seen: Seen, *, made: bool = False) -> Int[Array, "rows vocab"]:
    """How often each token stands in each row, of the whole row or of what was `made` alone."""
    rows, vocab = logits.shape
    slot = jnp.arange(seen.tokens.shape[1], dtype=jnp.int32)[None]
    there = slot < seen.length[:, None]
    if made:
        there &= slot >= seen.prompt[:, None]
    # A place outside of the logits is left out; a negative one would count from the end.
    tokens = jnp.where(there & (seen.tokens >= 0), seen.tokens, vocab)
    zeros = jnp.zeros((rows, vocab), jnp.int32)
    return zeros.at[jnp.arange(rows)[:, None], tokens].add(1, mode="drop")
