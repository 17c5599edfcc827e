"""A model small enough for tests of the training loop: it sees the current token only."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


class Bigram(eqx.Module):
    """Logits of the next token from this one, with a vector that must not decay and a label."""

    embedding: Float[Array, "vocab dim"]
    output: Float[Array, "dim vocab"]
    bias: Float[Array, " vocab"]
    name: str = eqx.field(static=True)

    def __init__(self, vocab: int = 5, dim: int = 4, *, key: PRNGKeyArray):
        first, second = jax.random.split(key)
        self.embedding = jax.random.normal(first, (vocab, dim))
        self.output = jax.random.normal(second, (dim, vocab))
        self.bias = jnp.zeros(vocab)
        self.name = "bigram"

    def __call__(
        self, tokens: Int[Array, "*batch seq"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*batch seq vocab"]:
        scores = self.embedding[tokens] @ self.output
        return scores + jnp.broadcast_to(self.bias, scores.shape)


class Noisy(Bigram):
    """Logits that depend on the key, as dropout makes them."""

    def __call__(
        self, tokens: Int[Array, "*batch seq"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*batch seq vocab"]:
        scores = super().__call__(tokens)
        return scores if key is None else scores + jax.random.normal(key, scores.shape)
