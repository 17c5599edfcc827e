"""GPT-2 of Levanter, with named axes and a scanned stack."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import haliax as hax
import jax
from haliax.state_dict import from_torch_compatible_state_dict
from levanter.layers.attention import AttentionMask
from levanter.models.gpt2 import Gpt2Config, Gpt2LMHeadModel

from peers import optax_step
from peers.names import gpt_arrays
from peers.task import NORM_EPSILON, Task


def gpt(task: Task) -> Gpt2LMHeadModel:
    """The model with the task's weights; like everybody else it computes nothing twice."""
    size = task.size
    config = Gpt2Config(
        max_seq_len=size.seq,
        hidden_dim=size.dim,
        num_layers=size.layers,
        num_heads=size.heads,
        mlp_scale=size.hidden // size.dim,
        layer_norm_epsilon=NORM_EPSILON,
        gradient_checkpointing=False,
    )
    vocab = hax.Axis("vocab", size.vocab)
    model = Gpt2LMHeadModel.init(vocab, config, key=jax.random.key(0))
    arrays = {name.removeprefix("transformer."): array for name, array in gpt_arrays(task)}
    model = from_torch_compatible_state_dict(model, arrays)
    return jax.tree.map(lambda x: x.astype(task.dtype) if eqx.is_inexact_array(x) else x, model)


def decays(parameters: Any) -> Any:
    """True for matrices, by name, since layers are stacked."""

    def is_matrix(path: tuple[Any, ...], leaf: Any) -> bool:
        names = {str(getattr(key, "name", key)) for key in path}
        return not names & {"bias", "ln_1", "ln_2", "ln_f"}

    return jax.tree_util.tree_map_with_path(is_matrix, parameters)


def step(task: Task) -> Callable[[], float]:
    """A training step on the task's batch."""
    parameters, static = eqx.partition(gpt(task), eqx.is_inexact_array)
    axes = hax.Axis("batch", task.size.batch), hax.Axis("position", task.size.seq)

    def logits(parameters: Any, ids: jax.Array) -> jax.Array:
        model = eqx.combine(parameters, static)
        found = model(hax.named(ids, axes), AttentionMask.causal())
        return found.rearrange(("batch", "position", "vocab")).array

    return optax_step.training(logits, parameters, task.tokens, decays)
