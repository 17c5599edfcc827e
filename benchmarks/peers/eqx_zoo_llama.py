"""Llama of eqx-zoo: one sequence at a time, batched by `vmap`."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from eqx_zoo import CausalLM
from eqx_zoo.models.causal_lm import Config

from peers import optax_step
from peers.names import llama_arrays
from peers.task import NORM_EPSILON, ROTARY_BASE, Task


def llama(task: Task) -> CausalLM:
    """The model with the task's weights."""
    size = task.size
    config = Config(
        architecture="LlamaForCausalLM",
        vocab_size=size.vocab,
        hidden_size=size.dim,
        intermediate_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        head_dim=size.dim // size.heads,
        rms_norm_eps=NORM_EPSILON,
        rope_theta=ROTARY_BASE,
        tie_word_embeddings=True,
        attention_bias=False,
        qk_norm=False,
        rope_scaling=None,
    )
    model = CausalLM(config, key=jax.random.key(0), dtype=task.dtype)
    for name, array in llama_arrays(task):
        model = put(model, name, array)
    return model


def put(model: CausalLM, name: str, array: np.ndarray) -> CausalLM:
    """The model with one array replaced, which its name leads to: `model.layers.0.mlp...`."""

    def at(node: Any) -> Any:
        for part in name.split("."):
            node = node[int(part)] if part.isdigit() else getattr(node, part)
        return node

    old = at(model)
    return eqx.tree_at(at, model, jnp.asarray(array.reshape(old.shape), old.dtype))


def step(task: Task) -> Callable[[], float]:
    """A training step on the task's batch."""
    parameters, static = eqx.partition(llama(task), eqx.is_inexact_array)

    def logits(parameters: CausalLM, ids: jax.Array) -> jax.Array:
        return jax.vmap(lambda one: eqx.combine(parameters, static)(one)[0])(ids)

    return optax_step.training(logits, parameters, task.tokens)
