"""Feed-forwards: what a block does to each token by itself."""

import abc
from typing import Annotated

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


class RouterLosses(eqx.Module):
    """What a mixture of experts adds to the loss; scalars, before any coefficient.

    Arguments:
        load_balance: `experts * sum over e of share[e] * probability[e]` of a layer, 1 where all
            experts have as much to do (Fedus et al. 2021).
        z: the mean of `logsumexp(logits)^2` (Zoph et al. 2022).

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> losses = ef.RouterLosses(load_balance=jnp.array(1.5), z=jnp.array(4.0))
        >>> float(0.5 * losses.load_balance + 0.25 * losses.z)
        1.75
    """

    load_balance: Float[Array, ""]
    z: Float[Array, ""]


class FeedForward(eqx.Module):
    """What acts on each token alone. One of your own subclasses this and its `Config`.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> class Gain(ef.FeedForward):
        ...     weight: jax.Array
        ...     def run(self, x, *, key=None):
        ...         return x * self.weight, None
        >>> Gain(jnp.array([1.0, 2.0]))(jnp.array([3.0, 4.0])).tolist()
        [3.0, 8.0]
    """

    class Config(Config):
        """The hyperparameters of a feed-forward."""

        def build(self, dim: int, *, key: PRNGKeyArray) -> "FeedForward":
            """The feed-forward of a model of width `dim`."""
            raise NotImplementedError(f"{self.type_name} must define `build`.")

    @abc.abstractmethod
    def run(
        self, x: Float[Array, "*batch dim"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*batch dim"], RouterLosses | None]:
        """The result for every token, and the losses of a router, if there is one."""

    def run_valid(
        self,
        x: Float[Array, "*batch seq dim"],
        valid: Bool[Array, "*#batch seq"] | None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*batch seq dim"], RouterLosses | None]:
        """`run`, given which tokens are no padding: in a router's losses only these count."""
        return self.run(x, key=key)

    def __call__(
        self, x: Float[Array, "*batch dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*batch dim"]:
        """The result for every token; a key switches dropout on."""
        return self.run(x, key=key)[0]


class MLP(FeedForward):
    """Feed-forward: `down(act(up(x)))` (Vaswani et al. 2017).

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> mlp = ef.MLP(8, hidden=32, activation="relu", key=jax.random.key(0))
        >>> mlp(jnp.ones((2, 3, 8))).shape
        (2, 3, 8)
    """

    class Config(FeedForward.Config):
        """The inner width, the activation, dropout after it, and the two projections."""

        hidden: int
        activation: Activation = "gelu"
        dropout: float = 0.0
        up: Linear.Config = Linear.Config()
        down: Linear.Config = Linear.Config()

        def check(self) -> None:
            check_hidden(self.hidden)
            check_rate("dropout", self.dropout)

        def build(self, dim: int, *, key: PRNGKeyArray) -> "MLP":
            """An `MLP` for this width."""
            return MLP(dim, self, key=key)

    up: Annotated[AbstractLinear, Axes(in_dim="dim", out_dim="hidden")]
    down: Annotated[AbstractLinear, Axes(in_dim="hidden", out_dim="dim")]
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, config: Config, *, key: PRNGKeyArray):
        up, down = split(key, 2)
        self.up = config.up.build(dim, config.hidden, key=up)
        self.down = config.down.build(config.hidden, dim, key=down)
        self.config = config

    def run(
        self, x: Float[Array, "*batch dim"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*batch dim"], None]:
        hidden = activation(self.config.activation)(self.up(x))
        return self.down(dropout(hidden, self.config.dropout, key)), None


class GatedMLP(FeedForward):
    """Gated feed-forward: `down(act(gate(x)) * up(x))` (Shazeer 2020); with SiLU, SwiGLU.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> mlp = ef.GatedMLP(8, hidden=32, activation="silu", key=jax.random.key(0))
        >>> mlp(jnp.ones((2, 3, 8))).shape
        (2, 3, 8)
    """

    class Config(FeedForward.Config):
        """The inner width, the activation, dropout before the last projection, the projections."""

        hidden: int
        activation: Activation = "silu"
        dropout: float = 0.0
        gate: Linear.Config = Linear.Config(bias=False)
        up: Linear.Config = Linear.Config(bias=False)
        down: Linear.Config = Linear.Config(bias=False)

        def check(self) -> None:
            check_hidden(self.hidden)
            check_rate("dropout", self.dropout)

        def build(self, dim: int, *, key: PRNGKeyArray) -> "GatedMLP":
            """A `GatedMLP` for this width."""
            return GatedMLP(dim, self, key=key)

    gate: Annotated[AbstractLinear, Axes(in_dim="dim", out_dim="hidden")]
    up: Annotated[AbstractLinear, Axes(in_dim="dim", out_dim="hidden")]
    down: Annotated[AbstractLinear, Axes(in_dim="hidden", out_dim="dim")]
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, config: Config, *, key: PRNGKeyArray):
        gate, up, down = split(key, 3)
        self.gate = config.gate.build(dim, config.hidden, key=gate)
        self.up = config.up.build(dim, config.hidden, key=up)
        self.down = config.down.build(config.hidden, dim, key=down)
        self.config = config

    def run(
        self, x: Float[Array, "*batch dim"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*batch dim"], None]:
        hidden = activation(self.config.activation)(self.gate(x)) * self.up(x)
        return self.down(dropout(hidden, self.config.dropout, key)), None


class ClampedGatedMLP(FeedForward):
    """Clamped gated feed-forward: `down((up + 1) * gate * sigmoid(alpha * gate))` (gpt-oss, 2025).

    `gate` is bounded above by `limit`, `up` on both sides, before they are multiplied.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> mlp = ef.ClampedGatedMLP(8, hidden=32, key=jax.random.key(0))
        >>> mlp(jnp.ones((2, 3, 8))).shape
        (2, 3, 8)
    """

    class Config(FeedForward.Config):
        """The inner width, the slope of the sigmoid, the bound, dropout, and the projections."""

        hidden: int
        alpha: float = 1.702
        limit: float = 7.0
        dropout: float = 0.0
        gate: Linear.Config = Linear.Config()
        up: Linear.Config = Linear.Config()
        down: Linear.Config = Linear.Config()

        def check(self) -> None:
            check_hidden(self.hidden)
            check_rate("dropout", self.dropout)
            if not self.limit > 0.0:
                raise ValueError(f"`limit` must be above 0; got {self.limit}.")

        def build(self, dim: int, *, key: PRNGKeyArray) -> "ClampedGatedMLP":
            """A `ClampedGatedMLP` for this width."""
            return ClampedGatedMLP(dim, self, key=key)

    gate: Annotated[AbstractLinear, Axes(in_dim="dim", out_dim="hidden")]
    up: Annotated[AbstractLinear, Axes(in_dim="dim", out_dim="hidden")]
    down: Annotated[AbstractLinear, Axes(in_dim="hidden", out_dim="dim")]
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, config: Config, *, key: PRNGKeyArray):
        gate, up, down = split(key, 3)
        self.gate = config.gate.build(dim, config.hidden, key=gate)
        self.up = config.up.build(dim, config.hidden, key=up)
        self.down = config.down.build(config.hidden, dim, key=down)
        self.config = config

    def run(
        self, x: Float[Array, "*batch dim"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*batch dim"], None]:
        limit = self.config.limit
        gate = jnp.minimum(self.gate(x), limit)
        up = jnp.clip(self.up(x), -limit, limit)
        hidden = (up + 1.0) * gate * jax.nn.sigmoid(self.config.alpha * gate)
        return self.down(dropout(hidden, self.config.dropout, key)), None


def check_hidden(hidden: int) -> None:
    """Raises `ValueError` for an inner width below one."""
    if hidden < 1:
        raise ValueError(f"`hidden` must be positive; got {hidden}.")
