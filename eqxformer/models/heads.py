"""Heads: from hidden states to scores of tokens or labels."""

import abc
from typing import Annotated, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from eqxformer.axes import Axes
from eqxformer.config import Config, takes_options
from eqxformer.layers.activations import Activation, activation
from eqxformer.layers.dropout import check_rate, dropout
from eqxformer.layers.embedding import Embedding
from eqxformer.layers.linear import Linear, along_last
from eqxformer.layers.norms import LayerNorm, Norm, build_norm, widen


def softcap(logits: Float[Array, "*any"], cap: float | None) -> Float[Array, "*any"]:
    """`cap * tanh(logits / cap)`; no cap leaves them."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def check_softcap(cap: float | None) -> None:
    """Raises `ValueError` for a bound that is not above zero."""
    if cap is not None and not cap > 0.0:
        raise ValueError(f"`softcap` must be above 0, or None; got {cap}.")


class TokenHead(eqx.Module):
    """From hidden states to a score per token of the vocabulary."""

    class Config(Config):
        """The hyperparameters of a head."""

        def build(self, dim: int, vocab: int, *, key: PRNGKeyArray) -> "TokenHead":
            """The head of a model of this width and vocabulary."""
            raise NotImplementedError(f"{self.type_name} must define `build`.")

    @abc.abstractmethod
    def __call__(
        self, x: Float[Array, "*batch dim"], table: Embedding
    ) -> Float[Array, "*batch vocab"]:
        """The logits; `table` is the model's token table, which tied heads use."""


class TiedHead(TokenHead):
    """The token table as output: `softcap(scale * x @ table.T + bias)` (Press & Wolf 2017)."""

    class Config(TokenHead.Config):
        """A factor of the logits, a bias of its own, and a bound `c tanh(logits / c)`."""

        scale: float | Literal["1/sqrt(dim)"] = 1.0
        softcap: float | None = None
        bias: bool = False

        def check(self) -> None:
            check_softcap(self.softcap)

        def build(self, dim: int, vocab: int, *, key: PRNGKeyArray) -> "TiedHead":
            """The head; the key is not used, since nothing is drawn."""
            return TiedHead(dim, vocab, self)

    bias: Float[Array, " vocab"] | None
    scale: float = eqx.field(static=True)
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, vocab: int, config: Config):
        self.bias = jnp.zeros(vocab, jnp.float32) if config.bias else None
        self.scale = dim**-0.5 if isinstance(config.scale, str) else config.scale
        self.config = config

    def __call__(
        self, x: Float[Array, "*batch dim"], table: Embedding
    ) -> Float[Array, "*batch vocab"]:
        logits = table.attend(x if self.scale == 1.0 else self.scale * x)
        if self.bias is not None:
            logits = logits + along_last(self.bias, logits)
        return softcap(logits, self.config.softcap)


class LinearHead(TokenHead):
    """A projection of its own as output: `softcap(scale * linear(x))`."""

    class Config(TokenHead.Config):
        """The projection, a factor of the logits, and a bound `c tanh(logits / c)`."""

        linear: Linear.Config = Linear.Config(bias=False)
        scale: float = 1.0
        softcap: float | None = None

        def check(self) -> None:
            check_softcap(self.softcap)

        def build(self, dim: int, vocab: int, *, key: PRNGKeyArray) -> "LinearHead":
            """The head of a model of this width and vocabulary."""
            return LinearHead(dim, vocab, self, key=key)

    linear: Annotated[Linear, Axes(in_dim="dim", out_dim="vocab")]
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, vocab: int, config: Config, *, key: PRNGKeyArray):
        self.linear = config.linear.build(dim, vocab, key=key)
        self.config = config

    def __call__(
        self, x: Float[Array, "*batch dim"], table: Embedding
    ) -> Float[Array, "*batch vocab"]:
        return softcap(self.config.scale * self.linear(x), self.config.softcap)


class MaskedLMHead(TokenHead):
    """BERT's head for masked tokens: `output(norm(act(dense(x))))`."""

    class Config(TokenHead.Config):
        """The layer before the output, and the output: tied with a bias unless said."""

        dense: Linear.Config = Linear.Config()
        activation: Activation = "gelu"
        norm: Norm.Config | None = LayerNorm.Config()
        output: TokenHead.Config = TiedHead.Config(bias=True)

        def build(self, dim: int, vocab: int, *, key: PRNGKeyArray) -> "MaskedLMHead":
            """The head of a model of this width and vocabulary."""
            return MaskedLMHead(dim, vocab, self, key=key)

    dense: Annotated[Linear, Axes(in_dim="dim", out_dim="dim")]
    norm: Norm
    output: TokenHead
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, vocab: int, config: Config, *, key: PRNGKeyArray):
        dense, output = jax.random.split(key)
        self.dense = config.dense.build(dim, dim, key=dense)
        self.norm = build_norm(config.norm, dim)
        self.output = config.output.build(dim, vocab, key=output)
        self.config = config

    def __call__(
        self, x: Float[Array, "*batch dim"], table: Embedding
    ) -> Float[Array, "*batch vocab"]:
        h = activation(self.config.activation)(self.dense(x))
        return self.output(self.norm(h), table)


class Pooling(eqx.Module):
    """One vector per sequence: a mean, a maximum, the first or last token; then a layer, a norm.

    Padding takes no part: the mean, maximum, first and last are those of the real tokens. A
    sequence without any gives zeros.
    """

    class Config(Config):
        """What is taken, a layer after it (BERT's pooler), and whether its length is made one."""

        take: Literal["mean", "max", "first", "last"] = "mean"
        dense: Linear.Config | None = None
        activation: Activation = "tanh"
        unit_length: bool = False

        def build(self, dim: int, *, key: PRNGKeyArray) -> "Pooling":
            """The pooling of a model of this width."""
            return Pooling(dim, self, key=key)

    dense: Annotated[Linear, Axes(in_dim="dim", out_dim="dim")] | None
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, config: Config, *, key: PRNGKeyArray):
        self.dense = None if config.dense is None else config.dense.build(dim, dim, key=key)
        self.config = config

    def __call__(
        self, x: Float[Array, "*batch seq dim"], valid: Bool[Array, "*#batch seq"] | None = None
    ) -> Float[Array, "*batch dim"]:
        """The vector of each sequence; `valid` is true for real tokens, everywhere if None."""
        real = jnp.ones(x.shape[:-1], bool) if valid is None else valid
        real = jnp.broadcast_to(real, x.shape[:-1])
        y = _POOL[self.config.take](jnp.where(real[..., None], x, 0), real)
        if self.dense is not None:
            y = activation(self.config.activation)(self.dense(y))
        if self.config.unit_length:
            wide = widen(y)
            square = jnp.square(wide).sum(-1, keepdims=True)
            y = (wide * jax.lax.rsqrt(jnp.maximum(square, 1e-24))).astype(y.dtype)
        return y


class SequenceHead(eqx.Module):
    """Scores of labels for a whole sequence: `linear(dropout(pool(x)))`."""

    class Config(Config):
        """How many labels, how the sequence becomes a vector, dropout before the projection."""

        labels: int
        pooling: Pooling.Config = Pooling.Config(take="first", dense=Linear.Config())
        dropout: float = 0.0
        linear: Linear.Config = Linear.Config()

        def check(self) -> None:
            check_labels(self.labels)
            check_rate("dropout", self.dropout)

        def build(self, dim: int, vocab: int, *, key: PRNGKeyArray) -> "SequenceHead":
            """The head of a model of this width."""
            return SequenceHead(dim, self, key=key)

    pooling: Pooling
    linear: Annotated[Linear, Axes(in_dim="dim", out_dim="labels")]
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, config: Config, *, key: PRNGKeyArray):
        pooling, linear = jax.random.split(key)
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
        return self.linear(dropout(self.pooling(x, valid), self.config.dropout, key))


class LabelHead(eqx.Module):
    """Scores of labels for every token: `linear(dropout(x))`."""

    class Config(Config):
        """How many labels, and dropout before the projection."""

        labels: int
        dropout: float = 0.0
        linear: Linear.Config = Linear.Config()

        def check(self) -> None:
            check_labels(self.labels)
            check_rate("dropout", self.dropout)

        def build(self, dim: int, vocab: int, *, key: PRNGKeyArray) -> "LabelHead":
            """The head of a model of this width."""
            return LabelHead(dim, self, key=key)

    linear: Annotated[Linear, Axes(in_dim="dim", out_dim="labels")]
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, config: Config, *, key: PRNGKeyArray):
        self.linear = config.linear.build(dim, config.labels, key=key)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "*batch seq dim"],
        valid: Bool[Array, "*#batch seq"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch seq labels"]:
        return self.linear(dropout(x, self.config.dropout, key))


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
