"""GPT-2 as people write it in plain Equinox: one sequence at a time, batched by `vmap`."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

import eqxformer as ef


class Block(eqx.Module):
    """Pre-norm attention and feed-forward of one sequence."""

    attention_norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    feed_forward_norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, block: ef.Block, dim: int, heads: int, hidden: int):
        key = jax.random.key(0)
        self.attention_norm, self.feed_forward_norm = eqx.nn.LayerNorm(dim), eqx.nn.LayerNorm(dim)
        biases = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
        attention = eqx.nn.MultiheadAttention(heads, dim, **biases, key=key)
        for name, ours in (
            ("query", "query"),
            ("key", "key"),
            ("value", "value"),
            ("output", "out"),
        ):
            attention = eqx.tree_at(
                lambda a, name=name: getattr(a, f"{name}_proj"),
                attention,
                linear(getattr(block.attention, ours)),
            )
        self.attention = attention
        self.up, self.down = linear(block.feed_forward.up), linear(block.feed_forward.down)

    def __call__(self, x: Float[Array, "seq dim"]) -> Float[Array, "seq dim"]:
        h = jax.vmap(self.attention_norm)(x)
        x = x + self.attention(h, h, h, mask=jnp.tril(jnp.ones((len(x), len(x)), bool)))
        h = jax.vmap(self.feed_forward_norm)(x)
        return x + jax.vmap(lambda t: self.down(jax.nn.gelu(self.up(t))))(h)


class GPT(eqx.Module):
    """The decoder, with the weights of one of ours."""

    tokens: eqx.nn.Embedding
    positions: Float[Array, "context dim"]
    blocks: list[Block]
    norm: eqx.nn.LayerNorm

    def __init__(self, model: ef.DecoderLM):
        config = model.config
        first = config.blocks[0]
        self.tokens = eqx.nn.Embedding(weight=model.embedding.tokens.weight)
        self.positions = model.embedding.positions.weight
        sizes = (config.dim, first.attention.heads, first.feed_forward.hidden)
        self.blocks = [Block(block, *sizes) for block in model.blocks]
        self.norm = eqx.nn.LayerNorm(config.dim)

    def one(self, ids: Int[Array, " seq"]) -> Float[Array, "seq vocab"]:
        """The logits of one sequence."""
        x = jax.vmap(self.tokens)(ids) + self.positions[: len(ids)]
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.norm)(x) @ self.tokens.weight.T

    def __call__(self, ids: Int[Array, "batch seq"]) -> Float[Array, "batch seq vocab"]:
        return jax.vmap(self.one)(ids)


def linear(ours: ef.Linear) -> eqx.nn.Linear:
    """The same map as an `eqx.nn.Linear`, which stores its weight the other way round."""
    rows, columns = ours.weight.shape
    new = eqx.nn.Linear(rows, columns, key=jax.random.key(0))
    return eqx.tree_at(lambda n: (n.weight, n.bias), new, (ours.weight.T, ours.bias))
