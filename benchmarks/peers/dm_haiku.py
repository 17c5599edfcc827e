"""GPT-2 in Haiku, of its own layers."""

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from peers import optax_step
from peers.task import NORM_EPSILON, Size, Task


def layer_norm(name: str) -> hk.LayerNorm:
    """A layer norm of the last axis."""
    return hk.LayerNorm(-1, create_scale=True, create_offset=True, eps=NORM_EPSILON, name=name)


def gpt(ids: jax.Array, size: Size) -> jax.Array:
    """The logits of a batch."""
    positions = hk.get_parameter("positions", (size.seq, size.dim), init=jnp.zeros)
    tokens = hk.get_parameter("tokens", (size.vocab, size.dim), init=jnp.zeros)
    x = tokens[ids] + positions[: ids.shape[1]]
    mask = jnp.tril(jnp.ones((1, 1, ids.shape[1], ids.shape[1]), bool))
    start = hk.initializers.RandomNormal(0.02)
    for n in range(size.layers):
        attention = hk.MultiHeadAttention(
            size.heads, size.dim // size.heads, w_init=start, name=f"attention_{n}"
        )
        h = layer_norm(f"attention_norm_{n}")(x)
        x = x + attention(h, h, h, mask=mask)
        h = layer_norm(f"feed_forward_norm_{n}")(x)
        h = jax.nn.gelu(hk.Linear(size.hidden, name=f"up_{n}")(h))
        x = x + hk.Linear(size.dim, name=f"down_{n}")(h)
    return layer_norm("norm")(x) @ tokens.T


def parameters(task: Task) -> dict[str, dict[str, jax.Array]]:
    """The task's weights by Haiku's names."""
    weights = task.weights
    found: dict[str, dict[str, np.ndarray]] = {
        "~": {name: weights[f"embedding.{name}.weight"] for name in ("tokens", "positions")},
        "norm": norm(weights, "norm"),
    }
    for n in range(task.size.layers):
        layer = task.layer(n)
        found[f"attention_norm_{n}"] = norm(layer, "attention_residual.pre_norm")
        found[f"feed_forward_norm_{n}"] = norm(layer, "feed_forward_residual.pre_norm")
        for name in ("query", "key", "value"):
            found[f"attention_{n}/{name}"] = linear(layer, f"attention.{name}")
        found[f"attention_{n}/linear"] = linear(layer, "attention.out")
        for name in ("up", "down"):
            found[f"{name}_{n}"] = linear(layer, f"feed_forward.{name}")
    return jax.tree.map(lambda array: jnp.asarray(array, task.dtype), found)


def norm(weights: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """A layer norm's parameters."""
    return {"scale": weights[f"{name}.weight"], "offset": weights[f"{name}.bias"]}


def linear(weights: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """A linear map's parameters."""
    return {"w": weights[f"{name}.weight"], "b": weights[f"{name}.bias"]}


def step(task: Task) -> Callable[[], float]:
    """A training step on the task's batch."""
    model = hk.without_apply_rng(hk.transform(lambda ids: gpt(ids, task.size)))

    def logits(parameters: Any, ids: jax.Array) -> jax.Array:
        return model.apply(parameters, ids)

    return optax_step.training(logits, parameters(task), task.tokens)
