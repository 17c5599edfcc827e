"""eqxformer, as its users train it: `make_step` with one of the losses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

import eqxformer as ef
from peers import task as tasks


def step(task: tasks.Task) -> Callable[[], float]:
    """A training step on the task's batch."""
    like = ef.shapes(tasks.config(task.size))
    leaves = [jnp.asarray(task.weights[name], task.dtype) for name in ef.named_arrays(like)]
    model = jax.tree.unflatten(jax.tree.structure(like), leaves)
    settings = ef.AdamW(
        tasks.LEARNING_RATE,
        betas=tasks.BETAS,
        epsilon=tasks.EPSILON,
        weight_decay=tasks.WEIGHT_DECAY,
        clip=ef.ClipByNorm(tasks.CLIP),
    )
    optimizer = settings.build(steps=1000)
    tokens = jnp.asarray(task.tokens, jnp.int32)
    if task.size.kind == "seq2seq":
        batch = ef.PairBatch(jnp.asarray(task.source, jnp.int32), tokens)
        update = ef.make_step(ef.sequence_to_sequence_loss, optimizer)
    else:
        batch = ef.TokenBatch(tokens)
        update = ef.make_step(ef.next_token_loss, optimizer)
    state = [ef.TrainState.create(model, optimizer, key=jax.random.key(0))]

    def repeat() -> float:
        state[0], metrics = update(state[0], batch)
        return float(metrics["loss"])  # waits for the step

    return repeat
