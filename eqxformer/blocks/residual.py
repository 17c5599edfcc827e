"""The residual wiring: pre-, post- and sandwich-norm by which norms are there."""

from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from eqxformer.config import Config, takes_options
from eqxformer.keys import split
from eqxformer.layers.dropout import check_rate, drop_path, dropout
from eqxformer.layers.norms import LayerNorm, Norm, build_norm, scaled

Aux = TypeVar("Aux")


class Residual(eqx.Module):
    """Residual wiring: `out_norm(x + scale * post_norm(f(pre_norm(x))))`.

    With only `pre_norm`, the pre-norm of GPT-2 and Llama; with only `out_norm`, the post-norm of
    the first transformer and of BERT; with `pre_norm` and `post_norm`, Gemma 2's sandwich; with
    only `post_norm`, OLMo 2. Between `f` and the sum come dropout and stochastic depth.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> residual = ef.Residual(8, pre_norm=ef.RMSNorm.Config())
        >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
        >>> residual(jnp.ones((2, 3, 8)), mlp).shape
        (2, 3, 8)
    """

    class Config(Config):
        """The norms, the factor of the branch, and what drops parts of it while training."""

        pre_norm: Norm.Config | None = None
        post_norm: Norm.Config | None = None
        out_norm: Norm.Config | None = None
        scale: float = 1.0
        dropout: float = 0.0
        drop_path: float = 0.0

        def check(self) -> None:
            check_rate("dropout", self.dropout)
            check_rate("drop_path", self.drop_path)

        def build(self, dim: int) -> "Residual":
            """The wiring of a branch in a model of width `dim`."""
            return Residual(dim, self)

    pre_norm: Norm
    post_norm: Norm
    out_norm: Norm
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, config: Config):
        self.pre_norm = build_norm(config.pre_norm, dim)
        self.post_norm = build_norm(config.post_norm, dim)
        self.out_norm = build_norm(config.out_norm, dim)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "*batch seq dim"],
        branch: Callable[[Array], Array],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch seq dim"]:
        """`x` with the result of `branch` added; a key switches dropout on."""
        return self.run(x, lambda h: (branch(h), None), key=key)[0]

    def run(
        self,
        x: Float[Array, "*batch seq dim"],
        branch: Callable[[Array], tuple[Array, Aux]],
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*batch seq dim"], Aux]:
        """The same for a branch that hands on something beside its result (a cache, losses)."""
        number_key, path_key = split(key, 2)
        y, aux = branch(self.pre_norm(x))
        y = dropout(self.post_norm(y), self.config.dropout, number_key)
        y = drop_path(y, self.config.drop_path, path_key)
        return self.out_norm(x + scaled(y, self.config.scale)), aux


def pre_norm(norm: Norm.Config | None = None, dropout: float = 0.0) -> Residual.Config:
    """`x + f(norm(x))`, with layer norm unless another is given.

    That of GPT-2 and Llama (Xiong et al. 2020).

    Example:
        >>> import eqxformer as ef
        >>> ef.pre_norm(ef.RMSNorm.Config())
        Residual(pre_norm=RMSNorm())
    """
    return Residual.Config(pre_norm=norm or LayerNorm.Config(), dropout=dropout)


def post_norm(norm: Norm.Config | None = None, dropout: float = 0.0) -> Residual.Config:
    """`norm(x + f(x))`, with layer norm unless another is given.

    That of the first transformer and of BERT (Vaswani et al. 2017).

    Example:
        >>> import eqxformer as ef
        >>> ef.post_norm(dropout=0.1)
        Residual(out_norm=LayerNorm(), dropout=0.1)
    """
    return Residual.Config(out_norm=norm or LayerNorm.Config(), dropout=dropout)


def sandwich_norm(norm: Norm.Config | None = None, dropout: float = 0.0) -> Residual.Config:
    """`x + norm(f(norm(x)))`, with layer norm unless another is given.

    That of Gemma 2 (Gemma Team 2024).

    Example:
        >>> import eqxformer as ef
        >>> ef.sandwich_norm(ef.RMSNorm.Config())
        Residual(pre_norm=RMSNorm(), post_norm=RMSNorm())
    """
    norm = norm or LayerNorm.Config()
    return Residual.Config(pre_norm=norm, post_norm=norm, dropout=dropout)
