"""The training step that PyTorch users write: zero, forward, backward, clip, AdamW."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from eqxformer.bench.harness import torch_device
from peers import task as tasks

DEVICE = torch_device()


def training(
    model: torch.nn.Module,
    logits: Callable[[torch.Tensor], torch.Tensor],
    task: tasks.Task,
) -> Callable[[], float]:
    """Steps of a model on one batch; `logits(ids)` calls it, compiled or not.

    Matrix products of float32 may use TensorFloat-32 on a GPU, as JAX's do; the update of all
    weights is one kernel.
    """
    torch.set_float32_matmul_precision("high")
    model.to(device=DEVICE, dtype=getattr(torch, task.dtype)).train()
    every = list(model.parameters())
    groups = [
        {"params": [p for p in every if p.ndim >= 2], "weight_decay": tasks.WEIGHT_DECAY},
        {"params": [p for p in every if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        groups, lr=tasks.LEARNING_RATE, betas=tasks.BETAS, eps=tasks.EPSILON, fused=True
    )
    tokens = torch.tensor(task.tokens, device=DEVICE)
    read, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].reshape(-1)

    def repeat() -> float:
        adamw.zero_grad(set_to_none=True)
        scores = logits(read)
        loss = F.cross_entropy(scores.flatten(0, 1).float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(every, tasks.CLIP)
        adamw.step()
        return loss.item()  # waits for the step

    return repeat


def load(parameter: torch.nn.Parameter, array: np.ndarray) -> None:
    """Writes an array into a parameter."""
    if tuple(parameter.shape) != array.shape:
        raise ValueError(f"{array.shape} does not fit {tuple(parameter.shape)}.")
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))


def load_linear(linear: torch.nn.Linear, *ours: str, weights: dict[str, np.ndarray]) -> None:
    """Writes linear maps of ours, `[in, out]`, into one of torch, `[out, in]`, side by side."""
    load(linear.weight, np.concatenate([weights[f"{name}.weight"].T for name in ours]))
    if linear.bias is not None:
        load(linear.bias, np.concatenate([weights[f"{name}.bias"] for name in ours]))


def load_norm(norm: torch.nn.Module, name: str, weights: dict[str, np.ndarray]) -> None:
    """Writes the gain of a norm, and its bias if it has one."""
    load(norm.weight, weights[f"{name}.weight"])
    if getattr(norm, "bias", None) is not None:
        load(norm.bias, weights[f"{name}.bias"])
