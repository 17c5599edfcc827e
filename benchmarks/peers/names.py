"""A task's weights by the names and in the layout of transformers, which others use too."""

from collections.abc import Iterator

import numpy as np

from peers.task import Task

PROJECTIONS = ("query", "key", "value")


def gpt_arrays(task: Task) -> Iterator[tuple[str, np.ndarray]]:
    """GPT-2; its linear maps are `[in, out]`, as ours."""
    yield "transformer.wte.weight", task.weights["embedding.tokens.weight"]
    yield "transformer.wpe.weight", task.weights["embedding.positions.weight"]
    names = {"attention.out": "attn.c_proj"}
    names |= {"feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj"}
    names |= {"attention_residual.pre_norm": "ln_1", "feed_forward_residual.pre_norm": "ln_2"}
    for kind in ("weight", "bias"):
        yield f"transformer.ln_f.{kind}", task.weights[f"norm.{kind}"]
        for number in range(task.size.layers):
            layer, start = task.layer(number), f"transformer.h.{number}."
            parts = [layer[f"attention.{name}.{kind}"] for name in PROJECTIONS]
            yield f"{start}attn.c_attn.{kind}", np.concatenate(parts, -1)
            for ours, theirs in names.items():
                yield f"{start}{theirs}.{kind}", layer[f"{ours}.{kind}"]


def llama_arrays(task: Task) -> Iterator[tuple[str, np.ndarray]]:
    """Llama; its linear maps are `[out, in]`."""
    yield "model.embed_tokens.weight", task.weights["embedding.tokens.weight"]
    yield "model.norm.weight", task.weights["norm.weight"]
    linears = {f"attention.{name}": f"self_attn.{name[0]}_proj" for name in (*PROJECTIONS, "out")}
    linears |= {f"feed_forward.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    for number in range(task.size.layers):
        layer, start = task.layer(number), f"model.layers.{number}."
        for ours, theirs in linears.items():
            yield f"{start}{theirs}.weight", layer[f"{ours}.weight"].T
        yield f"{start}input_layernorm.weight", layer["attention_residual.pre_norm.weight"]
        after = "feed_forward_residual.pre_norm.weight"
        yield f"{start}post_attention_layernorm.weight", layer[after]
