"""PyTorch with `torch.compile`, which is free to choose what it likes for this one shape."""

from collections.abc import Callable

import torch

from peers import torch_eager
from peers.task import Task


def step(task: Task) -> Callable[[], float]:
    """A training step on the task's batch, forward and backward compiled."""
    return torch_eager.step(task, faster=torch.compile)
