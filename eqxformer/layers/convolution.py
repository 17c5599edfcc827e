"""Convolution along a sequence: what an audio encoder hears a spectrogram with."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqxformer.config import Config, takes_options
from eqxformer.layers.initializers import Initializer, LeCun
from eqxformer.layers.linear import along_last


class Convolution(eqx.Module):
    """Convolution: `y[t] = bias + sum over k of x[stride * t + k - kernel // 2] @ weight[k]`.

    Zeros stand before the first place and after the last, so that `n` places become `n / stride`,
    rounded up.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> convolution = ef.Convolution(8, 16, stride=2, key=jax.random.key(0))
        >>> convolution(jnp.ones((2, 10, 8))).shape
        (2, 5, 16)
    """

    class Config(Config):
        """How many places one result is from, an odd number; the step; bias, and how it starts."""

        kernel: int = 3
        stride: int = 1
        bias: bool = True
        init: Initializer = LeCun()

        def check(self) -> None:
            if self.kernel < 1 or self.kernel % 2 == 0:
                raise ValueError(f"`kernel` must be odd and positive; got {self.kernel}.")
            if self.stride < 1:
                raise ValueError(f"`stride` must be positive; got {self.stride}.")

        def build(self, in_dim: int, out_dim: int, *, key: PRNGKeyArray) -> "Convolution":
            """A `Convolution` from `in_dim` to `out_dim`."""
            return Convolution(in_dim, out_dim, self, key=key)

    weight: Float[Array, "kernel in_dim out_dim"]
    bias: Float[Array, " out_dim"] | None
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, in_dim: int, out_dim: int, config: Config, *, key: PRNGKeyArray):
        flat = config.init(key, (config.kernel * in_dim, out_dim))  # all of it is fan-in
        self.weight = flat.reshape(config.kernel, in_dim, out_dim)
        self.bias = jnp.zeros(out_dim, jnp.float32) if config.bias else None
        self.config = config

    def __call__(
        self, x: Float[Array, "*batch frames in_dim"]
    ) -> Float[Array, "*batch steps out_dim"]:
        kernel, stride = self.config.kernel, self.config.stride
        frames, side = x.shape[-2], kernel // 2
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(side, side), (0, 0)])
        y = x[..., :frames:stride, :] @ self.weight[0]
        for k in range(1, kernel):
            y = y + x[..., k : k + frames : stride, :] @ self.weight[k]
        return y if self.bias is None else y + along_last(self.bias, y)
