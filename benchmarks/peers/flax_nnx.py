"""GPT-2 in Flax NNX, of its own layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from peers import optax_step
from peers.task import NORM_EPSILON, Size, Task


class Block(nnx.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, size: Size, dtype: str, rngs: nnx.Rngs):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        self.attention_norm = nnx.LayerNorm(size.dim, epsilon=NORM_EPSILON, **types)
        self.attention = nnx.MultiHeadAttention(
            num_heads=size.heads, in_features=size.dim, decode=False, **types
        )
        self.feed_forward_norm = nnx.LayerNorm(size.dim, epsilon=NORM_EPSILON, **types)
        self.up = nnx.Linear(size.dim, size.hidden, **types)
        self.down = nnx.Linear(size.hidden, size.dim, **types)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.feed_forward_norm(x))))


class GPT(nnx.Module):
    """The decoder."""

    def __init__(self, size: Size, dtype: str):
        rngs = nnx.Rngs(0)
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        self.tokens = nnx.Embed(size.vocab, size.dim, **types)
        self.positions = nnx.Embed(size.seq, size.dim, **types)
        self.blocks = nnx.List([Block(size, dtype, rngs) for _ in range(size.layers)])
        self.norm = nnx.LayerNorm(size.dim, epsilon=NORM_EPSILON, **types)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.tokens(ids) + self.positions(jnp.arange(ids.shape[1]))
        mask = nnx.make_causal_mask(ids)
        for block in self.blocks:
            x = block(x, mask)
        return self.tokens.attend(self.norm(x))


def load(model: GPT, task: Task) -> None:
    """Writes the task's weights; an attention's are `[dim, heads, head_dim]` here."""
    weights, dtype = task.weights, task.dtype

    def put(variable: Any, array: np.ndarray) -> None:
        variable[...] = jnp.asarray(array.reshape(variable.shape), dtype)

    def put_both(part: Any, name: str, source: dict[str, np.ndarray], first: str) -> None:
        put(getattr(part, first), source[f"{name}.weight"])
        put(part.bias, source[f"{name}.bias"])

    put(model.tokens.embedding, weights["embedding.tokens.weight"])
    put(model.positions.embedding, weights["embedding.positions.weight"])
    put_both(model.norm, "norm", weights, "scale")
    for number, block in enumerate(model.blocks):
        layer = task.layer(number)
        put_both(block.attention_norm, "attention_residual.pre_norm", layer, "scale")
        put_both(block.feed_forward_norm, "feed_forward_residual.pre_norm", layer, "scale")
        for name in ("query", "key", "value", "out"):
            put_both(getattr(block.attention, name), f"attention.{name}", layer, "kernel")
        put_both(block.up, "feed_forward.up", layer, "kernel")
        put_both(block.down, "feed_forward.down", layer, "kernel")


def decays(parameters: Any) -> Any:
    """True for matrices, by name, since some biases have two axes here."""

    def is_matrix(path: tuple[Any, ...], leaf: Any) -> bool:
        names = {str(getattr(key, "key", getattr(key, "name", key))) for key in path}
        return not names & {"bias", "scale"}

    return jax.tree_util.tree_map_with_path(is_matrix, parameters)


def step(task: Task) -> Callable[[], float]:
    """A training step on the task's batch."""
    model = GPT(task.size, task.dtype)
    load(model, task)
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)

    def logits(parameters: Any, ids: jax.Array) -> jax.Array:
        return nnx.merge(graph, parameters, rest)(ids)

    return optax_step.training(logits, parameters, task.tokens, decays)
