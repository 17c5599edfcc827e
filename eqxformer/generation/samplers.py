"""How a token is chosen from logits: small values, pure and usable under `jit`."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


class Sampler(eqx.Module):
    """A choice of one token per row."""

    @abc.abstractmethod
    def __call__(
        self, logits: Float[Array, "rows vocab"], keys: Key[Array, " rows"] | None
    ) -> Int[Array, " rows"]:
        """The chosen ids; `keys` holds a key per row."""

    @property
    @abc.abstractmethod
    def needs_key(self) -> bool:
        """Whether the choice is random."""


class Greedy(Sampler):
    """The token with the largest logit; the first of equal ones."""

    @property
    def needs_key(self) -> bool:
        return False

    def __call__(
        self, logits: Float[Array, "rows vocab"], keys: Key[Array, " rows"] | None
    ) -> Int[Array, " rows"]:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


class Sample(Sampler):
    """A token drawn from `softmax(logits / temperature)`, of the `top_k` likeliest if given.

    Another `temperature` compiles nothing anew; another `top_k` does.
    """

    temperature: Float[Array, ""]
    top_k: int | None = eqx.field(static=True)

    def __init__(self, temperature: float = 1.0, top_k: int | None = None):
        if not temperature > 0.0:
            raise ValueError(
                f"`temperature` must be above 0; got {temperature}. For the likeliest token every "
                "time, use `Greedy()`."
            )
        if top_k is not None and top_k < 1:
            raise ValueError(f"`top_k` must be positive; got {top_k}.")
        self.temperature = jnp.asarray(temperature, jnp.float32)
        self.top_k = top_k

    @property
    def needs_key(self) -> bool:
        return True

    def __call__(
        self, logits: Float[Array, "rows vocab"], keys: Key[Array, " rows"] | None
    ) -> Int[Array, " rows"]:
        if keys is None:
            raise ValueError("`Sample` draws at random and needs a key per row; got none.")
        logits = logits.astype(jnp.float32) / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = jax.lax.top_k(logits, self.top_k)[0][:, -1:]
            logits = jnp.where(logits < jnp.broadcast_to(least, logits.shape), -jnp.inf, logits)
        drawn = jax.vmap(jax.random.categorical)(keys, logits)
        return drawn.astype(jnp.int32)
