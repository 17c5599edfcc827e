"""GPT-2 as people write it in plain Equinox: one sequence at a time, batched by `vmap`."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from peers import optax_step
from peers.task import NORM_EPSILON, Size, Task


class Block(eqx.Module):
    """Pre-norm attention and feed-forward of one sequence."""

    attention_norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    feed_forward_norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, size: Size, layer: dict[str, np.ndarray]):
        biases = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
        attention = eqx.nn.MultiheadAttention(size.heads, size.dim, **biases, key=jax.random.key(0))
        projections = [linear(layer, f"attention.{n}") for n in ("query", "key", "value", "out")]
        self.attention = eqx.tree_at(
            lambda a: (a.query_proj, a.key_proj, a.value_proj, a.output_proj),
            attention,
            tuple(projections),
        )
        self.attention_norm = norm(layer, "attention_residual.pre_norm")
        self.feed_forward_norm = norm(layer, "feed_forward_residual.pre_norm")
        self.up, self.down = linear(layer, "feed_forward.up"), linear(layer, "feed_forward.down")

    def __call__(self, x: Float[Array, "seq dim"]) -> Float[Array, "seq dim"]:
        h = jax.vmap(self.attention_norm)(x)
        x = x + self.attention(h, h, h, mask=jnp.tril(jnp.ones((len(x), len(x)), bool)))
        h = jax.vmap(self.feed_forward_norm)(x)
        return x + jax.vmap(lambda t: self.down(jax.nn.gelu(self.up(t))))(h)


class GPT(eqx.Module):
    """The decoder, with the weights of a task."""

    tokens: eqx.nn.Embedding
    positions: Float[Array, "context dim"]
    blocks: list[Block]
    norm: eqx.nn.LayerNorm

    def __init__(self, task: Task):
        weights = task.weights
        self.tokens = eqx.nn.Embedding(weight=jnp.asarray(weights["embedding.tokens.weight"]))
        self.positions = jnp.asarray(weights["embedding.positions.weight"])
        self.blocks = [Block(task.size, task.layer(n)) for n in range(task.size.layers)]
        self.norm = norm(weights, "norm")

    def one(self, ids: Int[Array, " seq"]) -> Float[Array, "seq vocab"]:
        """The logits of one sequence."""
        x = jax.vmap(self.tokens)(ids) + self.positions[: len(ids)]
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.norm)(x) @ self.tokens.weight.T

    def __call__(self, ids: Int[Array, "batch seq"]) -> Float[Array, "batch seq vocab"]:
        return jax.vmap(self.one)(ids)


def norm(weights: dict[str, np.ndarray], name: str) -> eqx.nn.LayerNorm:
    """A layer norm with the weights of this name."""
    gain, bias = (jnp.asarray(weights[f"{name}.{kind}"]) for kind in ("weight", "bias"))
    new = eqx.nn.LayerNorm(gain.shape, eps=NORM_EPSILON)
    return eqx.tree_at(lambda n: (n.weight, n.bias), new, (gain, bias))


def linear(weights: dict[str, np.ndarray], name: str) -> eqx.nn.Linear:
    """A linear map, which stores its weight the other way round."""
    weight, bias = (jnp.asarray(weights[f"{name}.{kind}"]) for kind in ("weight", "bias"))
    new = eqx.nn.Linear(*weight.shape, key=jax.random.key(0))
    return eqx.tree_at(lambda n: (n.weight, n.bias), new, (weight.T, bias))


def step(task: Task) -> Callable[[], float]:
    """A training step on the task's batch."""
    model = GPT(task)
    model = jax.tree.map(lambda x: x.astype(task.dtype) if eqx.is_array(x) else x, model)
    parameters, static = eqx.partition(model, eqx.is_array)

    def logits(parameters: GPT, ids: Int[Array, "batch seq"]) -> Float[Array, "batch seq vocab"]:
        return eqx.combine(parameters, static)(ids)

    return optax_step.training(logits, parameters, task.tokens)
