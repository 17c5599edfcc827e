"""Heads: from hidden states to scores of tokens or labels."""

import abc
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
from eqxformer.layers.embedding import Embedding
from eqxformer.layers.linear import AbstractLinear, Linear, along_last
from eqxformer.layers.norms import LayerNorm, Norm, build_norm, scaled, widen


def softcap(logits: Float[Array, "*any"], cap: float | None) -> Float[Array, "*any"]:
    """`cap * tanh(logits / cap)`; no cap leaves them."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def check_softcap(cap: float | None) -> None:
    """Raises `ValueError` for a bound that is not above zero."""
    if cap is not None and not cap > 0.0:
        raise ValueError(f"`softcap` must be above 0, or None; got {cap}.")


class TokenHead(eqx.Module):
    """From hidden states to a score per token of the vocabulary.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> class CosineHead(ef.TokenHead):
        ...     def __call__(self, x, table):
        ...         return table.attend(x / jnp.linalg.norm(x, axis=-1, keepdims=True))
        >>> table = ef.Embedding(65, 8, key=jax.random.key(0))
        >>> CosineHead()(jnp.ones((2, 8)), table).shape
        (2, 65)
    """

    class Config(Config):
        """The hyperparameters of a head."""

        def build(
            self, dim: int, vocab: int, *, width: int | None = None, key: PRNGKeyArray
        ) -> "TokenHead":
            """The head of a model of this width and vocabulary, with a token table of `width`."""
            raise NotImplementedError(f"{self.type_name} must define `build`.")

    @abc.abstractmethod
    def __call__(
        self, x: Float[Array, "*batch dim"], table: Embedding
    ) -> Float[Array, "*batch vocab"]:
        """The logits; `table` is the model's token table, which tied heads use."""


class TiedHead(TokenHead):
    """The token table as output: `softcap(scale * x @ table.T + bias)` (Press & Wolf 2017).

    `x` is projected first where the table is narrower than the model.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> table = ef.Embedding(65, 8, key=jax.random.key(0))
        >>> head = ef.TiedHead(8, 65, key=jax.random.key(1))
        >>> head(jnp.ones((2, 8)), table).shape
        (2, 65)
    """

    class Config(TokenHead.Config):
        """A factor of the logits, a bias of its own, and a bound `c tanh(logits / c)`.

        `project` is the projection to the table's width, for tables that have one of their own.
        """

        scale: float | Literal["1/sqrt(dim)"] = 1.0
        softcap: float | None = None
        bias: bool = False
        project: Linear.Config | None = None

        def check(self) -> None:
            check_softcap(self.softcap)

        def build(
            self, dim: int, vocab: int, *, width: int | None = None, key: PRNGKeyArray
        ) -> "TiedHead":
            """The head; raises `ValueError` for a table of another width without `project`."""
            return TiedHead(dim, vocab, self, width=width, key=key)

    project: Annotated[AbstractLinear, Axes(in_dim="dim", out_dim="width")] | None
    bias: Float[Array, " vocab"] | None
    scale: float = eqx.field(static=True)
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(
        self, dim: int, vocab: int, config: Config, *, width: int | None = None, key: PRNGKeyArray
    ):
        width = dim if width is None else width
        if config.project is None and width != dim:
            raise ValueError(
                f"The token table has a width of {width}, what it is tied to one of {dim}; set "
                "`project=Linear.Config()` in the tied head, or take another head."
            )
        self.project = None if config.project is None else config.project.build(dim, width, key=key)
        self.bias = jnp.zeros(vocab, jnp.float32) if config.bias else None
        self.scale = dim**-0.5 if isinstance(config.scale, str) else config.scale
        self.config = config

    def __call__(
        self, x: Float[Array, "*batch dim"], table: Embedding
    ) -> Float[Array, "*batch vocab"]:
        x = x if self.project is None else self.project(x)
        logits = table.attend(scaled(x, self.scale))
        if self.bias is not None:
            logits = logits + along_last(self.bias, logits)
        return softcap(logits, self.config.softcap)


class LinearHead(TokenHead):
    """A projection of its own as output: `softcap(scale * linear(x))`.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> table = ef.Embedding(65, 8, key=jax.random.key(0))
        >>> head = ef.LinearHead(8, 65, key=jax.random.key(1))
        >>> head(jnp.ones((2, 8)), table).shape
        (2, 65)
    """

    class Config(TokenHead.Config):
        """The projection, a factor of the logits, and a bound `c tanh(logits / c)`."""

        linear: Linear.Config = Linear.Config(bias=False)
        scale: float = 1.0
        softcap: float | None = None

        def check(self) -> None:
            check_softcap(self.softcap)

        def build(
            self, dim: int, vocab: int, *, width: int | None = None, key: PRNGKeyArray
        ) -> "LinearHead":
            """The head of a model of this width and vocabulary."""
            return LinearHead(dim, vocab, self, key=key)

    linear: Annotated[AbstractLinear, Axes(in_dim="dim", out_dim="vocab")]
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, vocab: int, config: Config, *, key: PRNGKeyArray):
        self.linear = config.linear.build(dim, vocab, key=key)
        self.config = config

    def __call__(
        self, x: Float[Array, "*batch dim"], table: Embedding
    ) -> Float[Array, "*batch vocab"]:
        return softcap(scaled(self.linear(x), self.config.scale), self.config.softcap)


class MaskedLMHead(TokenHead):
    """BERT's head for masked tokens: `output(norm(act(dense(x))))`.

    Where the token table is narrower than the model, `dense` leads to the table's width (ALBERT).

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> table = ef.Embedding(65, 8, key=jax.random.key(0))
        >>> head = ef.MaskedLMHead(8, 65, key=jax.random.key(1))
        >>> head(jnp.ones((2, 8)), table).shape
        (2, 65)
    """

    class Config(TokenHead.Config):
        """The layer before the output, and the output: tied with a bias unless said."""

        dense: Linear.Config = Linear.Config()
        activation: Activation = "gelu"
        norm: Norm.Config | None = LayerNorm.Config()
        output: TokenHead.Config = TiedHead.Config(bias=True)

        def build(
            self, dim: int, vocab: int, *, width: int | None = None, key: PRNGKeyArray
        ) -> "MaskedLMHead":
            """The head of a model of this width and vocabulary, with a token table of `width`."""
            return MaskedLMHead(dim, vocab, self, width=width, key=key)

    dense: Annotated[AbstractLinear, Axes(in_dim="dim", out_dim="dim")]
    norm: Norm
    output: TokenHead
    width: int | None = eqx.field(static=True)
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(
        self, dim: int, vocab: int, config: Config, *, width: int | None = None, key: PRNGKeyArray
    ):
        dense, output = split(key, 2)
        inner = dim if width is None else width
        self.dense = config.dense.build(dim, inner, key=dense)
        self.norm = build_norm(config.norm, inner)
        self.output = config.output.build(inner, vocab, width=width, key=output)
        self.width = width
        self.config = config

    def field_axes(self, field: str) -> Axes | None:
        """The words after `dense`, where the token table has a width of its own."""
        if self.width is None:
            return None
        return Axes(in_dim="dim", out_dim="width") if field == "dense" else Axes(dim="width")

    def __call__(
        self, x: Float[Array, "*batch dim"], table: Embedding
    ) -> Float[Array, "*batch vocab"]:
        h = activation(self.config.activation)(self.dense(x))
        return self.output(self.norm(h), table)


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
