"""GPT-2 and Llama of transformers, with attention through `scaled_dot_product_attention`."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from peers import torch_step
from peers.names import gpt_arrays, llama_arrays
from peers.task import NORM_EPSILON, ROTARY_BASE, Task


def step(task: Task) -> Callable[[], float]:
    """A training step on the task's batch."""
    model, arrays = {"gpt": gpt, "llama": llama}[task.size.kind](task)
    state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:  # the head is the token table
        raise ValueError(f"Missing {missing}, unexpected {unexpected}.")
    rates = {name: each for name, each in model.named_buffers() if name.endswith("inv_freq")}
    train = torch_step.training(model, lambda ids: model(ids, use_cache=False).logits, task)
    for name, each in rates.items():  # stay in float32, as where people load a model
        part, _, buffer = name.rpartition(".")
        setattr(model.get_submodule(part), buffer, each.to(torch_step.DEVICE))
    return train


def gpt(task: Task) -> tuple[torch.nn.Module, Iterator[tuple[str, np.ndarray]]]:
    """GPT-2, and the task's weights by its names; its linear maps are `[in, out]`, as ours."""
    size = task.size
    config = GPT2Config(
        vocab_size=size.vocab,
        n_positions=size.seq,
        n_embd=size.dim,
        n_layer=size.layers,
        n_head=size.heads,
        n_inner=size.hidden,
        activation_function="gelu_pytorch_tanh",  # the same as gelu_new, in one kernel
        layer_norm_epsilon=NORM_EPSILON,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config), gpt_arrays(task)


def llama(task: Task) -> tuple[torch.nn.Module, Iterator[tuple[str, np.ndarray]]]:
    """Llama, and the task's weights by its names."""
    size = task.size
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.dim,
        intermediate_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=size.seq,
        rms_norm_eps=NORM_EPSILON,
        rope_theta=ROTARY_BASE,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config), llama_arrays(task)
