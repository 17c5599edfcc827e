"""PyTorch without a compiler."""

from collections.abc import Callable

import torch

from peers import torch_models, torch_step
from peers.task import Task

Model = Callable[..., torch.Tensor]


def step(task: Task, faster: Callable[[Model], Model] = lambda model: model) -> Callable[[], float]:
    """A training step on the task's batch; `faster` may change how the model is called."""
    if task.size.kind != "seq2seq":
        model = torch_models.decoder(task)
        return torch_step.training(model, faster(model), task)
    model = torch_models.seq2seq(task)
    source = torch.tensor(task.source, device=torch_step.DEVICE)
    call = faster(model)
    return torch_step.training(model, lambda target: call(source, target), task)
