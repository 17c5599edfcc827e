"""The training step that JAX users write themselves: value and gradient, optax, all donated."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from peers import task as tasks


def optimizer(decays: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Clipping and AdamW; `decays` says of a tree of parameters which of them decay."""
    adamw = optax.adamw(
        tasks.LEARNING_RATE,
        b1=tasks.BETAS[0],
        b2=tasks.BETAS[1],
        eps=tasks.EPSILON,
        weight_decay=tasks.WEIGHT_DECAY,
        mask=decays,
    )
    return optax.chain(optax.clip_by_global_norm(tasks.CLIP), adamw)


def matrices(parameters: Any) -> Any:
    """True for matrices, False for biases and the gains of norms."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, parameters)


def next_token_loss(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Mean cross-entropy of all tokens but the first."""
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), tokens[:, 1:]
    )
    return losses.mean()


def training(
    logits: Callable[[Any, jax.Array], jax.Array],
    parameters: Any,
    tokens: np.ndarray,
    decays: Callable[[Any], Any] = matrices,
) -> Callable[[], float]:
    """Steps of `logits(parameters, ids)` on one batch."""
    chain = optimizer(decays)
    ids = jnp.asarray(tokens, jnp.int32)

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(parameters: Any, memory: Any, ids: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, gradients = jax.value_and_grad(
            lambda p: next_token_loss(logits(p, ids[:, :-1]), ids)
        )(parameters)
        changes, memory = chain.update(gradients, memory, parameters)
        return optax.apply_updates(parameters, changes), memory, loss

    state = [parameters, chain.init(parameters)]

    def repeat() -> float:
        state[0], state[1], loss = update(*state, ids)
        return float(loss)  # waits for the step

    return repeat
