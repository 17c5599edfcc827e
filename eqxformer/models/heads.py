"""Heads that score tokens: from hidden states to logits over the vocabulary."""

import abc
from typing import Annotated, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqxformer.axes import Axes
from eqxformer.config import Config, takes_options
from eqxformer.keys import split
from eqxformer.layers.activations import Activation, activation
from eqxformer.layers.embedding import Embedding
from eqxformer.layers.linear import AbstractLinear, Linear, along_last
from eqxformer.layers.norms import LayerNorm, Norm, build_norm, scaled


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
