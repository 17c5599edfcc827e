"""Heads that score labels: of a whole sequence, which they pool, or of every token."""

from typing import Annotated, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from eqxformer.axes import Axes
from eqxformer.config import Config, takes_options
from eqxformer.keys import split
from eqxformer.layers.activations import Activation, activation
from eqxformer.layers.dropout import check_rate, dropout
from eqxformer.layers.linear import AbstractLinear, Linear
from eqxformer.layers.norms import Norm, build_norm, widen


class Pooling(eqx.Module):
    """One vector per sequence, of its real tokens: `unit(norm(act(dense(dropout(take(x))))))`.

    Padding takes no part: the mean, maximum, first and last are those of the real tokens. A
    sequence without any gives zeros.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> mean = ef.Pooling(2, take="mean", key=jax.random.key(0))
        >>> real = jnp.array([True, True, False])
        >>> mean(jnp.array([[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]]), real).tolist()
        [2.0, 4.0]
    """

    class Config(Config):
        """What is taken of the tokens, and what is done with it.

        Arguments:
            take: their mean or maximum, or the first or last of them.
            dense, activation: a layer after it (BERT's pooler); no activation without the layer.
            unit_length: whether the vector's length is made one, last of all.
            dropout: before the layer (RoBERTa's classifier).
            norm: after the layer (ModernBERT's classifier).
        """

        take: Literal["mean", "max", "first", "last"] = "mean"
        dense: Linear.Config | None = None
        activation: Activation = "tanh"
        unit_length: bool = False
        dropout: float = 0.0
        norm: Norm.Config | None = None

        def check(self) -> None:
            check_rate("dropout", self.dropout)

        def build(self, dim: int, *, key: PRNGKeyArray) -> "Pooling":
            """The pooling of a model of this width."""
            return Pooling(dim, self, key=key)

    dense: Annotated[AbstractLinear, Axes(in_dim="dim", out_dim="dim")] | None
    norm: Norm
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, config: Config, *, key: PRNGKeyArray):
        self.dense = None if config.dense is None else config.dense.build(dim, dim, key=key)
        self.norm = build_norm(config.norm, dim)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "*batch seq dim"],
        valid: Bool[Array, "*#batch seq"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch dim"]:
        """The vector of each sequence; `valid` is true for real tokens, everywhere if None."""
        real = jnp.ones(x.shape[:-1], bool) if valid is None else valid
        real = jnp.broadcast_to(real, x.shape[:-1])
        y = _POOL[self.config.take](jnp.where(real[..., None], x, 0), real)
        y = dropout(y, self.config.dropout, key)
        if self.dense is not None:
            y = activation(self.config.activation)(self.dense(y))
        y = self.norm(y)
        if self.config.unit_length:
            wide = widen(y)
            square = jnp.square(wide).sum(-1, keepdims=True)
            y = (wide * jax.lax.rsqrt(jnp.maximum(square, 1e-24))).astype(y.dtype)
        return y


class SequenceHead(eqx.Module):
    """Scores of labels for a whole sequence: `linear(dropout(pool(x)))`.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> head = ef.SequenceHead(8, labels=3, key=jax.random.key(0))
        >>> head(jnp.ones((2, 5, 8))).shape
        (2, 3)
    """

    class Config(Config):
        """How many labels, how the sequence becomes a vector, dropout before the projection."""

        labels: int
        pooling: Pooling.Config = Pooling.Config(take="first", dense=Linear.Config())
        dropout: float = 0.0
        linear: Linear.Config = Linear.Config()

        def check(self) -> None:
            check_labels(self.labels)
            check_rate("dropout", self.dropout)

        def build(
            self, dim: int, vocab: int, *, width: int | None = None, key: PRNGKeyArray
        ) -> "SequenceHead":
            """The head of a model of this width."""
            return SequenceHead(dim, self, key=key)

    pooling: Pooling
    linear: Annotated[AbstractLinear, Axes(in_dim="dim", out_dim="labels")]
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, config: Config, *, key: PRNGKeyArray):
        pooling, linear = split(key, 2)
        self.pooling = config.pooling.build(dim, key=pooling)
        self.linear = config.linear.build(dim, config.labels, key=linear)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "*batch seq dim"],
        valid: Bool[Array, "*#batch seq"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch labels"]:
        pooling_key, dropout_key = split(key, 2)
        y = self.pooling(x, valid, key=pooling_key)
        return self.linear(dropout(y, self.config.dropout, dropout_key))


class LabelHead(eqx.Module):
    """Scores of labels for every token: `linear(dropout(norm(act(dense(x)))))`.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> head = ef.LabelHead(8, labels=3, key=jax.random.key(0))
        >>> head(jnp.ones((2, 5, 8))).shape
        (2, 5, 3)
    """

    class Config(Config):
        """How many labels, dropout before the projection, and a layer and a norm before that."""

        labels: int
        dropout: float = 0.0
        linear: Linear.Config = Linear.Config()
        dense: Linear.Config | None = None
        activation: Activation = "gelu"
        norm: Norm.Config | None = None

        def check(self) -> None:
            check_labels(self.labels)
            check_rate("dropout", self.dropout)

        def build(
            self, dim: int, vocab: int, *, width: int | None = None, key: PRNGKeyArray
        ) -> "LabelHead":
            """The head of a model of this width."""
            return LabelHead(dim, self, key=key)

    dense: Annotated[AbstractLinear, Axes(in_dim="dim", out_dim="dim")] | None
    norm: Norm
    linear: Annotated[AbstractLinear, Axes(in_dim="dim", out_dim="labels")]
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, config: Config, *, key: PRNGKeyArray):
        dense, linear = split(key, 2)
        self.dense = None if config.dense is None else config.dense.build(dim, dim, key=dense)
        self.norm = build_norm(config.norm, dim)
        self.linear = config.linear.build(dim, config.labels, key=linear)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "*batch seq dim"],
        valid: Bool[Array, "*#batch seq"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch seq labels"]:
        if self.dense is not None:
            x = activation(self.config.activation)(self.dense(x))
        return self.linear(dropout(self.norm(x), self.config.dropout, key))


def check_labels(labels: int) -> None:
    """Raises `ValueError` for fewer than one label."""
    if labels < 1:
        raise ValueError(f"`labels` must be positive; got {labels}.")


def _mean(x: Array, real: Array) -> Array:
    wide = widen(x)
    count = real.sum(-1, keepdims=True, dtype=wide.dtype)
    return (wide.sum(-2) / jnp.maximum(count, 1.0)).astype(x.dtype)


def _max(x: Array, real: Array) -> Array:
    lowest = jnp.finfo(x.dtype).min
    top = jnp.where(real[..., None], x, lowest).max(-2, initial=lowest)
    return jnp.where(real.any(-1, keepdims=True), top, 0)


def _first(x: Array, real: Array) -> Array:
    if not x.shape[-2]:
        return jnp.zeros((*x.shape[:-2], x.shape[-1]), x.dtype)
    index = jnp.argmax(real, axis=-1)[..., None, None]
    return jnp.take_along_axis(x, index, axis=-2)[..., 0, :]


def _last(x: Array, real: Array) -> Array:
    return _first(x[..., ::-1, :], real[..., ::-1])


_POOL = {"mean": _mean, "max": _max, "first": _first, "last": _last}
