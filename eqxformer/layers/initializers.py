"""How weights start, named after the papers. All take the fan-in from the last axis but one."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqxformer.config import Config


class Initializer(Config):
    """A value that draws a weight of shape `[..., in, out]`.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> class Constant(ef.Initializer):
        ...     value: float
        ...     def __call__(self, key, shape):
        ...         return jnp.full(shape, self.value)
        >>> ef.Linear(2, 3, init=Constant(0.5), key=jax.random.key(0)).weight.tolist()
        [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    """

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """A float32 array of this shape."""
        raise NotImplementedError(f"{self.type_name} must define `__call__`.")


class Zeros(Initializer):
    """All zeros: for biases, learned positions, and branches that start silent.

    Example:
        >>> import eqxformer as ef, jax
        >>> ef.Zeros()(jax.random.key(0), (2, 2)).tolist()
        [[0.0, 0.0], [0.0, 0.0]]
    """

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        return jnp.zeros(shape, jnp.float32)


class Normal(Initializer):
    """N(0, std^2); 0.02 is GPT-2's (Radford et al. 2019).

    Arguments:
        std: the standard deviation.

    Example:
        >>> import eqxformer as ef, jax
        >>> weight = ef.Normal(std=0.5)(jax.random.key(0), (64, 64))
        >>> round(float(weight.std()), 1)
        0.5
    """

    std: float = 0.02

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        return _normal(key, shape, self.std)


class TruncatedNormal(Initializer):
    """N(0, std^2) cut at two deviations; 0.02 is BERT's (Devlin et al. 2019).

    The numbers that are left vary a little less, by 0.88 times `std`.

    Arguments:
        std: the deviation before it is cut.

    Example:
        >>> import eqxformer as ef, jax
        >>> weight = ef.TruncatedNormal(std=0.5)(jax.random.key(0), (64, 64))
        >>> round(float(abs(weight).max()), 1)
        1.0
    """

    std: float = 0.02

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        return _truncated_normal(key, shape, self.std)


class LeCun(Initializer):
    """Variance 1 / fan_in, truncated normal (LeCun et al. 1998, Efficient BackProp).

    Example:
        >>> import eqxformer as ef, jax
        >>> weight = ef.LeCun()(jax.random.key(0), (64, 64))
        >>> round(float(64 * weight.var()), 1)
        1.0
    """

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        return jax.nn.initializers.lecun_normal(batch_axis=_front(shape))(key, shape, jnp.float32)


class Glorot(Initializer):
    """Uniform of variance 2 / (fan_in + fan_out) (Glorot & Bengio 2010).

    Example:
        >>> import eqxformer as ef, jax
        >>> weight = ef.Glorot()(jax.random.key(0), (64, 64))
        >>> round(float((64 + 64) / 2 * weight.var()), 1)
        1.0
    """

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        return jax.nn.initializers.glorot_uniform(batch_axis=_front(shape))(key, shape, jnp.float32)


class He(Initializer):
    """Variance 2 / fan_in, truncated normal, for ReLU (He et al. 2015).

    Example:
        >>> import eqxformer as ef, jax
        >>> weight = ef.He()(jax.random.key(0), (64, 64))
        >>> round(float(64 * weight.var()), 1)
        2.0
    """

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        return jax.nn.initializers.he_normal(batch_axis=_front(shape))(key, shape, jnp.float32)


class FanInUniform(Initializer):
    """Uniform between -1 / sqrt(fan_in) and 1 / sqrt(fan_in), as PyTorch's and Equinox's linear.

    Example:
        >>> import eqxformer as ef, jax
        >>> weight = ef.FanInUniform()(jax.random.key(0), (64, 64))
        >>> round(float(64**0.5 * abs(weight).max()), 1)
        1.0
    """

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        bound = shape[-2] ** -0.5 if shape[-2] else 0.0
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


class Orthogonal(Initializer):
    """A random orthogonal matrix times `gain` (Saxe et al. 2014).

    Arguments:
        gain: factor of the matrix.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> weight = ef.Orthogonal(gain=2.0)(jax.random.key(0), (4, 4))
        >>> bool(jnp.allclose(weight.T @ weight, 4.0 * jnp.eye(4), atol=1e-5))
        True
    """

    gain: float = 1.0

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        *front, rows, columns = shape
        matrix = jax.random.orthogonal(key, rows, tuple(front), jnp.float32, columns)
        return self.gain * matrix


@functools.partial(jax.jit, static_argnames="shape", inline=True)
def _normal(
    key: PRNGKeyArray, shape: tuple[int, ...], std: float | Float[Array, ""]
) -> Float[Array, "..."]:
    """Drawn and scaled in one program, not two: a process compiles fewer before its first step."""
    return std * jax.random.normal(key, shape, jnp.float32)


@functools.partial(jax.jit, static_argnames="shape", inline=True)
def _truncated_normal(
    key: PRNGKeyArray, shape: tuple[int, ...], std: float | Float[Array, ""]
) -> Float[Array, "..."]:
    """As `_normal`."""
    return std * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)


def _front(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of separate matrices: all but the last two."""
    return tuple(range(len(shape) - 2))
