"""Biases added to attention scores for the distance of two tokens: ALiBi and T5's relative bias."""

import abc
import math
from collections.abc import Iterable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from eqxformer.config import Config, takes_options
from eqxformer.layers.gather import rows_of
from eqxformer.layers.initializers import Initializer, Normal


class PositionBias(eqx.Module):
    """A score for every head, query and key, known from their places in the sequence.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> class LessForFar(ef.PositionBias):
        ...     def __call__(self, queries, keys):
        ...         distance = jnp.abs(keys[..., None, None, :] - queries[..., None, :, None])
        ...         return jnp.where(distance > 1, -1.0, 0.0)  # the same for all heads
        >>> LessForFar()(jnp.array([2]), jnp.arange(4)).tolist()
        [[[-1.0, 0.0, 0.0, 0.0]]]
    """

    class Config(Config):
        """The hyperparameters of a bias."""

        @property
        def counts_places(self) -> bool:
            """Whether places matter beside their distance; one of your own that needs them says so.

            Then padding must not count as one, and positions may be given to a model. The part must
            say the same, as it does where it holds this config as `config`.
            """
            return False

        def build(self, heads: int, *, key: PRNGKeyArray) -> "PositionBias":
            """The bias for so many heads."""
            raise NotImplementedError(f"{self.type_name} must define `build`.")

    @property
    def counts_places(self) -> bool:
        """Whether places matter beside their distance, as its config says, if it has one."""
        return getattr(getattr(self, "config", None), "counts_places", False)

    @abc.abstractmethod
    def __call__(
        self, queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
    ) -> Float[Array, "*#batch heads seq keys"]:
        """The bias between the places of the queries and those of the keys."""


class ALiBi(PositionBias):
    """Attention with linear biases: `-scale * slope[head] * |key - query|` (Press et al. 2021).

    The slopes are a geometric sequence for a power of two of heads; for other counts, those of the
    next lower power, then every second one of the next higher. They are not trained.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> ef.ALiBi(2)(jnp.array([2]), jnp.array([0, 1]))[0].tolist()
        [[-0.125, -0.0625]]
    """

    class Config(PositionBias.Config):
        """A factor of the bias, and whether it is rounded as Falcon was trained.

        `bfloat16` gives `scale * slope[head] * key` with slopes, places and products rounded to it;
        without that, the same but for one number per query. It is for causal models alone.
        """

        scale: float = 1.0
        rounding: Literal["none", "bfloat16"] = "none"

        @property
        def counts_places(self) -> bool:
            return self.rounding != "none"

        def build(self, heads: int, *, key: PRNGKeyArray) -> "ALiBi":
            """The bias for so many heads; the key is not used, since nothing is drawn."""
            return ALiBi(heads, self)

    heads: int = eqx.field(static=True)
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, heads: int, config: Config):
        self.heads = heads
        self.config = config

    def __call__(
        self, queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
    ) -> Float[Array, "*#batch heads seq keys"]:
        query, key = _grid(queries, keys)
        slopes = jnp.asarray(alibi_slopes(self.heads), jnp.float32)[:, None, None]
        if self.config.rounding == "bfloat16":
            slopes, steps = _rounded(slopes), _rounded(key.astype(jnp.float32))
        else:
            steps = -jnp.abs(key - query).astype(jnp.float32)
        shape = (*steps.shape[:-2], self.heads, *steps.shape[-2:])
        bias = jnp.broadcast_to(slopes, shape) * jnp.broadcast_to(steps[..., None, :, :], shape)
        return self.config.scale * (_rounded(bias) if self.config.rounding == "bfloat16" else bias)


class RelativeBias(PositionBias):
    """A learned number per head and bucket of distances: `weight[bucket(key - query), head]`.

    Raffel et al. 2020 (T5). Half of the buckets are single distances, the others grow
    logarithmically up to `max_distance`; `bidirectional` gives half of them to keys ahead.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> bias = ef.RelativeBias(2, buckets=8, max_distance=16, key=jax.random.key(0))
        >>> bias(jnp.arange(3), jnp.arange(4)).shape
        (2, 3, 4)
        >>> bias.bucket(jnp.array([-9, -1, 0, 1])).tolist()
        [3, 1, 0, 5]
    """

    class Config(PositionBias.Config):
        """How many buckets, where they end, and whether keys ahead have buckets of their own."""

        buckets: int = 32
        max_distance: int = 128
        direction: Literal["bidirectional", "causal"] = "bidirectional"
        init: Initializer = Normal(0.02)

        def check(self) -> None:
            sides = 2 if self.direction == "bidirectional" else 1
            if self.buckets < 2 * sides or self.buckets % sides:
                even = "even and " if sides == 2 else ""
                raise ValueError(
                    f"`buckets` must be {even}at least {2 * sides} for a {self.direction} bias; "
                    f"got {self.buckets}."
                )
            single = self.buckets // sides // 2
            if self.max_distance <= single:
                raise ValueError(
                    f"`max_distance` must be above {single}, the distances with a bucket of their "
                    f"own; got {self.max_distance}."
                )

        def build(self, heads: int, *, key: PRNGKeyArray) -> "RelativeBias":
            """The bias for so many heads."""
            return RelativeBias(heads, self, key=key)

    weight: Float[Array, "buckets heads"]
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, heads: int, config: Config, *, key: PRNGKeyArray):
        self.weight = config.init(key, (config.buckets, heads))
        self.config = config

    def __call__(
        self, queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
    ) -> Float[Array, "*#batch heads seq keys"]:
        buckets = self.bucket(_distances(queries, keys))
        return jnp.moveaxis(rows_of(self.weight, buckets), -1, -3)

    def bucket(self, distance: Int[Array, "*any"]) -> Int[Array, "*any"]:
        """The bucket of `key - query`."""
        config, count, first = self.config, self.config.buckets, jnp.zeros_like(distance)
        if config.direction == "bidirectional":
            count //= 2
            first = jnp.where(distance > 0, count, 0).astype(distance.dtype)
            distance = jnp.abs(distance)
        else:
            distance = jnp.maximum(-distance, 0)
        table = jnp.asarray(distance_buckets(count, config.max_distance), distance.dtype)
        return first + table[jnp.minimum(distance, config.max_distance)]


def distance_buckets(count: int, max_distance: int) -> Int[np.ndarray, " distances"]:
    """The bucket of every distance from 0 to `max_distance`, out of `count` for one direction.

    A table, since a logarithm computed on the device may fall on either side of a whole number.
    """
    exact = count // 2
    distance = np.arange(max_distance + 1)
    growth = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    far = exact + (growth / np.float32(math.log(max_distance / exact)) * (count - exact)).astype(
        int
    )
    return np.where(distance < exact, distance, np.minimum(far, count - 1))


class ExplicitBias(PositionBias):
    """Any array of numbers to add to the scores, for one call: `values[head, query, key]`.

    Arguments:
        values: `*batch heads seq keys`.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> bias = ef.ExplicitBias(jnp.zeros((2, 3, 4)))  # two heads, three queries, four keys
        >>> bias(jnp.arange(3), jnp.arange(4)).shape
        (2, 3, 4)
    """

    values: Float[Array, "*#batch heads seq keys"]

    def __call__(
        self, queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
    ) -> Float[Array, "*#batch heads seq keys"]:
        expected = (queries.shape[-1], keys.shape[-1])
        if self.values.shape[-2:] != expected:
            raise ValueError(
                f"`ExplicitBias.values` is for {self.values.shape[-2:]} queries and keys; "
                f"this call has {expected}."
            )
        return self.values


def build_bias(
    config: PositionBias.Config | None, heads: int, *, key: PRNGKeyArray
) -> PositionBias | None:
    """The bias of this config for so many heads, or None when there is none.

    Raises `ValueError` where the bias and its config disagree about `counts_places`: a model asks
    the config whether it takes positions, and the computation asks the bias.
    """
    if config is None:
        return None
    built = config.build(heads, key=key)
    if built.counts_places != config.counts_places:
        raise ValueError(
            f"`counts_places` of {type(built).__name__} must be that of its Config; got "
            f"{built.counts_places} of the part and {config.counts_places} of the Config. Say it "
            "in the Config alone, and let the part hold that as `config`."
        )
    return built


def sum_of(
    biases: Iterable[PositionBias | None],
    places: tuple[Int[Array, "*#batch seq"], Int[Array, "*#batch keys"]],
    *,
    valid: Bool[Array, "*#batch seq"] | None = None,
    positions: Int[Array, "*#batch seq"] | None = None,
) -> Float[Array, "*#batch heads seq keys"] | None:
    """The sum of the biases that there are between these places; None for none.

    Arguments:
        places: of the queries, and of the keys.
        valid, positions: which tokens of a text are real, and the positions they were given, where
            there is no cache, which knows of both. Where places count, they are these; to other
            biases only distances matter.
    """
    counted = places
    if positions is not None:
        counted = (positions, positions)
    elif valid is not None:
        at = jnp.maximum(jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - 1, 0)
        counted = (at, at)
    found = [b(*(counted if b.counts_places else places)) for b in biases if b is not None]
    if len(found) < 2:
        return found[0] if found else None
    shape = jnp.broadcast_shapes(*(f.shape for f in found))
    return sum(jnp.broadcast_to(f, shape) for f in found)  # pyright: ignore[reportReturnType]


def alibi_slopes(heads: int) -> Float[np.ndarray, " heads"]:
    """ALiBi's slope for every head."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = 2.0 ** (-8.0 / power * np.arange(1, power + 1))
    between = 2.0 ** (-4.0 / power * np.arange(1, 2 * (heads - power), 2))
    return np.concatenate([slopes, between])


def _rounded(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Float32 numbers rounded to bfloat16; a cast there and back may be optimised away."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _distances(
    queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
) -> Int[Array, "*#batch seq keys"]:
    query, key = _grid(queries, keys)
    return key - query


def _grid(
    queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
) -> tuple[Int[Array, "*full seq keys"], Int[Array, "*full seq keys"]]:
    """Queries down, keys across, over their common leading axes."""
    shape = jnp.broadcast_shapes(queries.shape[:-1], keys.shape[:-1])
    full = (*shape, queries.shape[-1], keys.shape[-1])
    return (
        jnp.broadcast_to(queries[..., :, None], full),
        jnp.broadcast_to(keys[..., None, :], full),
    )
