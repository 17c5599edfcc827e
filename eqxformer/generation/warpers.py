"""Processors that look at the logits alone: temperature, and what is too unlikely to be drawn.

Each that forbids keeps at least the likeliest token of a row, and treats equally likely tokens
alike. Where that leaves a choice of `at_least` so many tokens, equals of the last of them stay too.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from eqxformer.generation._selection import (
    below_largest,
    kth_largest,
    largest_threshold,
    least_of_share,
)
from eqxformer.generation.processors import Processor, Seen, number, whole, wide


class Temperature(Processor):
    """`logits / temperature`: below 1 sharper, above 1 flatter.

    Raises `ValueError` for a temperature that is not above 0.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> ef.Temperature(0.5)(jnp.array([[1.0, 2.0]]))
        Array([[2., 4.]], dtype=float32)
    """

    temperature: Float[Array, ""]

    def __init__(self, temperature: float):
        must = "above 0 and finite; for the likeliest token every time, use `Greedy()`"
        self.temperature = number("temperature", temperature, temperature > 0, must)

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        numbers = wide(logits)
        return (numbers / self.temperature.astype(numbers.dtype)).astype(logits.dtype)


class TopK(Processor):
    """Forbids what is below the `k`-th largest logit; equals of that one stay.

    Raises `ValueError` for a `k` below 1; one above the vocabulary forbids nothing. Another `k`
    compiles nothing anew.

    Source: Fan et al. 2018, Hierarchical Neural Story Generation (arXiv 1805.04833).

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> ef.TopK(2)(jnp.array([[1.0, 4.0, 3.0, 3.0]]))
        Array([[-inf,   4.,   3.,   3.]], dtype=float32)
    """

    k: Int[Array, ""]

    def __init__(self, k: int):
        self.k = whole("k", k, 1)

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        numbers = wide(logits)
        return _without(logits, numbers < kth_largest(numbers, self.k))


class TopP(Processor):
    """Keeps the likeliest tokens up to and with the one whose probability takes the sum to `p`.

    A token stays if those that are strictly likelier add up to less than `p`. So `p` of 1 forbids
    nothing.

    Arguments:
        p: above 0 and at most 1.
        at_least: how many tokens stay in any case. Another one compiles anew.

    Raises `ValueError` for numbers outside of these bounds.

    Source: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration (arXiv 1904.09751).

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> probabilities = jnp.array([[0.1, 0.6, 0.3]])
        >>> ef.TopP(0.7)(jnp.log(probabilities)) > -jnp.inf
        Array([[False,  True,  True]], dtype=bool)
    """

    p: Float[Array, ""]
    at_least: int = eqx.field(static=True)

    def __init__(self, p: float, *, at_least: int = 1):
        self.p = number("p", p, 0 < p <= 1, "above 0 and at most 1")
        self.at_least = _count(at_least)

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        numbers = wide(logits)
        probability = jax.nn.softmax(below_largest(numbers))
        least = least_of_share(numbers, probability, self.p.astype(numbers.dtype))
        return _without(logits, _spare(numbers < least, numbers, self.at_least))


class MinP(Processor):
    """Forbids what is less than `p` times as likely as the likeliest token.

    Arguments:
        p: from 0, which forbids nothing, to 1.
        at_least: how many tokens stay in any case. Another one compiles anew.

    Raises `ValueError` for numbers outside of these bounds.

    Source: Nguyen et al. 2024, Turning Up the Heat: Min-p Sampling (arXiv 2407.01082).

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> probabilities = jnp.array([[0.1, 0.6, 0.3]])
        >>> ef.MinP(0.4)(jnp.log(probabilities)) > -jnp.inf
        Array([[False,  True,  True]], dtype=bool)
    """

    p: Float[Array, ""]
    at_least: int = eqx.field(static=True)

    def __init__(self, p: float, *, at_least: int = 1):
        self.p = number("p", p, 0 <= p <= 1, "at least 0 and at most 1")
        self.at_least = _count(at_least)

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        numbers = wide(logits)
        unlikely = jnp.exp(below_largest(numbers)) < self.p.astype(numbers.dtype)
        return _without(logits, _spare(unlikely, numbers, self.at_least))


class Typical(Processor):
    """Keeps the tokens whose `-log p` is closest to the entropy, until they add up to `mass`.

    So the likeliest token may go. A token stays if those strictly closer add up to less than
    `mass`.

    Arguments:
        mass: above 0 and at most 1, which forbids nothing.
        at_least: how many tokens stay in any case, the closest. Another one compiles anew.

    Raises `ValueError` for numbers outside of these bounds.

    Source: Meister et al. 2023, Locally Typical Sampling (arXiv 2202.00666).

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> probabilities = jnp.array([[0.4, 0.15, 0.15, 0.15, 0.15]])
        >>> ef.Typical(0.5)(jnp.log(probabilities)) > -jnp.inf
        Array([[False,  True,  True,  True,  True]], dtype=bool)
    """

    mass: Float[Array, ""]
    at_least: int = eqx.field(static=True)

    def __init__(self, mass: float, *, at_least: int = 1):
        self.mass = number("mass", mass, 0 < mass <= 1, "above 0 and at most 1")
        self.at_least = _count(at_least)

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        surprise = -jax.nn.log_softmax(below_largest(wide(logits)))
        probability, terms = _entropy_terms(wide(logits))
        closeness = -jnp.abs(surprise - terms.sum(-1, keepdims=True))
        least = least_of_share(closeness, probability, self.mass.astype(closeness.dtype))
        return _without(logits, _spare(closeness < least, closeness, self.at_least))


class Epsilon(Processor):
    """Forbids what is less likely than `epsilon`; the likeliest token always stays.

    Arguments:
        epsilon: a probability, above 0 and below 1; the source uses 3e-4 to 9e-4.
        at_least: how many tokens stay in any case. Another one compiles anew.

    Raises `ValueError` for numbers outside of these bounds.

    Source: Hewitt et al. 2022, Truncation Sampling as Language Model Desmoothing (arXiv
    2210.15191).

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> probabilities = jnp.array([[0.1, 0.6, 0.3]])
        >>> ef.Epsilon(0.2)(jnp.log(probabilities)) > -jnp.inf
        Array([[False,  True,  True]], dtype=bool)
    """

    epsilon: Float[Array, ""]
    at_least: int = eqx.field(static=True)

    def __init__(self, epsilon: float, *, at_least: int = 1):
        self.epsilon = number("epsilon", epsilon, 0 < epsilon < 1, "above 0 and below 1")
        self.at_least = _count(at_least)

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        numbers = wide(logits)
        unlikely = jax.nn.softmax(below_largest(numbers)) < self.epsilon.astype(numbers.dtype)
        return _without(logits, _spare(unlikely, numbers, self.at_least))


class Eta(Processor):
    """Forbids what is less likely than `min(eta, sqrt(eta) * exp(-entropy))`.

    So of a flat distribution, whose tokens are all unlikely, more stay than with `Epsilon`.

    Arguments:
        eta: a probability, above 0 and below 1; the source uses 3e-4 to 2e-3.
        at_least: how many tokens stay in any case. Another one compiles anew.

    Raises `ValueError` for numbers outside of these bounds.

    Source: Hewitt et al. 2022, Truncation Sampling as Language Model Desmoothing (arXiv
    2210.15191).

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> probabilities = jnp.array([[0.1, 0.6, 0.3]])
        >>> ef.Eta(0.3)(jnp.log(probabilities)) > -jnp.inf
        Array([[False,  True,  True]], dtype=bool)
    """

    eta: Float[Array, ""]
    at_least: int = eqx.field(static=True)

    def __init__(self, eta: float, *, at_least: int = 1):
        self.eta = number("eta", eta, 0 < eta < 1, "above 0 and below 1")
        self.at_least = _count(at_least)

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        numbers = wide(logits)
        probability, terms = _entropy_terms(numbers)
        eta = self.eta.astype(numbers.dtype)
        least = jnp.minimum(eta, jnp.sqrt(eta) * jnp.exp(-terms.sum(-1, keepdims=True)))
        return _without(logits, _spare(probability < least, numbers, self.at_least))


class TopH(Processor):
    """Keeps the likeliest tokens whose terms `-p log p` add up to at most `h` of the entropy.

    The likeliest stays in any case.

    Arguments:
        h: above 0 and at most 1, which forbids nothing.

    Raises `ValueError` for an `h` outside of these bounds.

    Source: Potraghloo et al. 2025, Top-H Decoding (arXiv 2509.02510).

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> probabilities = jnp.array([[0.1, 0.6, 0.3]])
        >>> ef.TopH(0.8)(jnp.log(probabilities)) > -jnp.inf
        Array([[False,  True,  True]], dtype=bool)
    """

    h: Float[Array, ""]

    def __init__(self, h: float):
        self.h = number("h", h, 0 < h <= 1, "above 0 and at most 1")

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        numbers = wide(logits)
        h, (probability, terms) = self.h.astype(numbers.dtype), _entropy_terms(numbers)
        most = h * terms.sum(-1)

        def too_much(marked: Array) -> Array:
            return (jnp.where(marked, terms, jnp.zeros_like(terms)).sum(-1) > most) & (h < 1)

        last = largest_threshold(numbers, too_much)
        too_little = (probability == 0) & (h < 1)  # whose terms no sum would show
        return _without(logits, _spare((numbers <= last) | too_little, numbers, 1))


class Normalize(Processor):
    """`log_softmax(logits)`: the logits as log-probabilities.

    What is drawn stays the same, and where everything is forbidden, everything stays so. A beam
    search adds up what comes last in its processors, so that after those that forbid or change, its
    scores are of probabilities again.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> jnp.exp(ef.Normalize()(jnp.array([[0.0, 0.0, -jnp.inf]])))
        Array([[0.5, 0.5, 0. ]], dtype=float32)
    """

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        numbers = wide(logits)
        nothing = jnp.isneginf(numbers.max(-1, keepdims=True))
        normal = jnp.where(nothing, -jnp.inf, jax.nn.log_softmax(numbers))
        return normal.astype(logits.dtype)


def _entropy_terms(numbers: Array) -> tuple[Array, Array]:
    """The probability `p` of each token, and `-p log p`, which is 0 for a forbidden one."""
    surprise = -jax.nn.log_softmax(below_largest(numbers))
    probability = jnp.exp(-surprise)
    # For a forbidden token, 0 x infinity would be NaN.
    terms = jnp.where(jnp.isposinf(surprise), jnp.zeros_like(surprise), probability * surprise)
    return probability, terms


def _count(at_least: int) -> int:
    whole("at_least", at_least, 1)
    return at_least


def _spare(banned: Bool[Array, "rows vocab"], order: Array, at_least: int) -> Array:
    """Of what is banned, what is not among the first in `order`."""
    least = order.max(-1, keepdims=True) if at_least == 1 else kth_largest(order, at_least)
    return banned & (order < least)


def _without(logits: Array, banned: Bool[Array, "rows vocab"]) -> Array:
    return jnp.where(banned, -jnp.inf, logits)
