"""A model of transformers beside ours: the same weights, the same batch, what comes out of both.

The reference runs in float32 and in float64. The difference of the two is the noise of float32 in
this very model with these very weights, and 30 times that noise is what ours may be off.
"""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array

import eqxformer as ef
from tests.parity.weight_rules import Rules, fill, read

torch.set_num_threads(1)  # the models are tiny and the tests share the cores

VOCAB, SEQ, SOURCE = 50, 10, 12
NOISE_MARGIN = 30.0
EPSILON = float(np.finfo(np.float32).eps)

Arrays = dict[str, np.ndarray]


class Batch(eqx.Module):
    """Rows of several lengths, padded on the right, the left, both sides and not at all."""

    tokens: Any
    valid: Any
    types: Any
    source: Any
    source_valid: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """A reference model, our config for it, and how the weights and the calls correspond.

    Arguments:
        reference: makes the reference model.
        config: ours.
        rules: where each of our arrays comes from.
        theirs: outputs of the reference by name; those called `hidden...` are compared only, of the
            others gradients are taken too.
        ours: the same outputs of our model.
        unused: tensors of theirs that have no part in this, by prefix.
        buffers: tensors of theirs that are not trained there but are parameters of ours.
    """

    reference: Callable[[], torch.nn.Module]
    config: Any
    rules: Rules
    theirs: Callable[[torch.nn.Module, Batch], dict[str, torch.Tensor]]
    ours: Callable[[Any, Batch], dict[str, Array]]
    unused: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Error:
    """How far ours is from the float64 reference, and how far it may be."""

    name: str
    error: float
    tolerance: float
    size: float

    def __str__(self) -> str:
        return (
            f"{self.name}: off by {self.error:.2g}, allowed {self.tolerance:.2g}, "
            f"values up to {self.size:.2g}"
        )


def make_batch() -> Batch:
    """The batch of all tests: id 0 is padding, real ids start at 2."""
    random = np.random.default_rng(5)
    valid = np.ones((4, SEQ), bool)
    valid[1, -3:] = valid[2, :4] = valid[3, :2] = valid[3, -2:] = False
    source_valid = np.ones((4, SOURCE), bool)
    source_valid[0, :3] = source_valid[2, -5:] = source_valid[3, :1] = source_valid[3, -4:] = False
    return Batch(
        tokens=np.where(valid, random.integers(2, VOCAB, valid.shape), 0),
        valid=valid,
        types=random.integers(0, 2, valid.shape),
        source=np.where(source_valid, random.integers(2, VOCAB, source_valid.shape), 0),
        source_valid=source_valid,
    )


@contextlib.contextmanager
def float64_throughout() -> Iterator[None]:
    """Norms, softmaxes and tables that the reference always computes in float32, in float64."""
    narrow, method = torch.float32, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32 = torch.float = narrow
        torch.Tensor.float = method


def errors(family: Family, regime: str) -> tuple[list[Error], list[Error]]:
    """Errors of the outputs, and errors of the gradients of all parameters."""
    torch.manual_seed(0)
    model = family.reference().eval()
    with torch.no_grad():
        REGIMES[regime](tensors_of(family, model))
    batch = make_batch()
    narrow, narrow_gradients = run_theirs(family, model, batch)
    with float64_throughout():
        exact, exact_gradients = run_theirs(family, copy.deepcopy(model).double(), batch)
    weights = {key: tensor.detach().numpy() for key, tensor in tensors_of(family, model).items()}
    ours = fill(family.config, family.rules, weights)
    outputs, gradients = run_ours(family, ours, batch)
    noisy = read(ours, family.rules, narrow_gradients)
    true = read(ours, family.rules, exact_gradients)
    return (
        [error_of(key, outputs[key], narrow[key], exact[key]) for key in exact],
        [error_of(key, gradients[key], noisy[key], true[key]) for key in true],
    )


def error_of(name: str, ours: np.ndarray, narrow: np.ndarray, exact: np.ndarray) -> Error:
    """Of one array: the largest error, and the noise of the reference's float32 30 times over."""
    size = float(np.abs(exact).max())
    noise = max(float(np.abs(narrow - exact).max()), EPSILON * size)
    return Error(name, float(np.abs(ours - exact).max()), NOISE_MARGIN * noise, size)


def tensors_of(family: Family, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What there is to read: trained parameters, tied ones once, and the buffers asked for."""
    found = {key: tensor for key, tensor in model.named_parameters() if tensor.requires_grad}
    found |= {key: model.get_buffer(key).requires_grad_() for key in family.buffers}
    return {key: tensor for key, tensor in found.items() if not key.startswith(family.unused)}


def cold(tensors: Mapping[str, torch.Tensor]) -> None:
    """The reference's own initialisation: small numbers, among which the epsilons of norms show."""


def quiet(tensors: Mapping[str, torch.Tensor]) -> None:
    """Gains of norms lowered to a tenth, so that an epsilon shows even where the norm before it
    would have made everything as large as one. Some store the gain less one."""
    for key, tensor in tensors.items():
        if tensor.ndim == 1 and key.endswith("weight"):
            tensor -= 0.9


def hot(tensors: Mapping[str, torch.Tensor]) -> None:
    """Every parameter moved off its neutral value, so that none can be dropped unnoticed."""
    generator = torch.Generator().manual_seed(1)
    for tensor in tensors.values():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim == 1:
            tensor += 0.3 * noise
        else:
            tensor.copy_(2.0 * tensor.shape[-1] ** -0.5 * noise)


REGIMES = {regime.__name__: regime for regime in (cold, quiet, hot)}


def run_theirs(family: Family, model: torch.nn.Module, batch: Batch) -> tuple[Arrays, Arrays]:
    """The reference's outputs, zero at padding, and the gradients of all it was asked for."""
    tensors = tensors_of(family, model)
    outputs = family.theirs(model, jax.tree.map(torch.from_numpy, batch))
    loss = sum(
        (output * torch.from_numpy(weight).to(output.dtype)).sum()
        for (key, output) in outputs.items()
        if (weight := _weight(key, output.shape, batch)) is not None
    )
    gradients = torch.autograd.grad(loss, list(tensors.values()))
    numbers = {key: output.detach().numpy() for key, output in outputs.items()}
    return _without_padding(numbers, batch), {
        key: gradient.numpy() for key, gradient in zip(tensors, gradients, strict=True)
    }


def run_ours(family: Family, model: Any, batch: Batch) -> tuple[Arrays, Arrays]:
    """Our outputs, zero at padding, and the gradients of all parameters by path."""
    gradients, outputs = compiled(family)(model, jax.tree.map(jnp.asarray, batch))
    numbers = {key: np.asarray(output) for key, output in outputs.items()}
    found = {key: np.asarray(gradient) for key, gradient in ef.named_arrays(gradients).items()}
    return _without_padding(numbers, batch), found


@functools.cache
def compiled(family: Family) -> Callable[[Any, Batch], tuple[Any, dict[str, Array]]]:
    """Gradients and outputs of our model; compiled once for all regimes."""
    batch = make_batch()

    @eqx.filter_jit
    @eqx.filter_grad(has_aux=True)
    def run(model: Any, given: Batch) -> tuple[Array, dict[str, Array]]:
        outputs = family.ours(model, given)
        loss = sum(
            (output * jnp.asarray(weight, output.dtype)).sum()
            for key, output in outputs.items()
            if (weight := _weight(key, output.shape, batch)) is not None
        )
        return loss, outputs

    return run


def _weight(key: str, shape: tuple[int, ...], batch: Batch) -> np.ndarray | None:
    """What the loss multiplies an output with: random numbers, zero at padding."""
    if key.startswith("hidden"):
        return None
    numbers = np.random.default_rng(6).normal(size=shape) / np.prod(shape) ** 0.5
    return _without_padding({key: numbers}, batch)[key]


def _without_padding(outputs: Arrays, batch: Batch) -> Arrays:
    """Zeros where no real token is; a pooled row counts where its first token is real."""
    real = {SEQ: batch.valid, SOURCE: batch.source_valid}

    def masked(output: np.ndarray) -> np.ndarray:
        kept = real[output.shape[1]][..., None] if output.ndim == 3 else batch.valid[:, :1]
        return np.where(kept, output, 0.0)

    return {key: masked(output) for key, output in outputs.items()}


class Watched:
    """A stack of blocks that notes what enters each of them."""

    def __init__(self, stack: ef.Stack) -> None:
        self.stack, self.seen = stack, []

    def run(self, x: Array, context: ef.Context, **_: Any) -> tuple[Array, None, None]:
        for block in self.stack:
            self.seen.append(x)
            x, _, _ = block.run(x, context)
        return x, None, None


def watched(model: Any, where: Callable[[Any], ef.Stack]) -> tuple[Any, list[Array]]:
    """The model with the stack that `where` finds watched, and the list of what it will note."""
    watch = Watched(where(model))
    return eqx.tree_at(where, model, watch), watch.seen


def hidden(states: Sequence[Any], side: str = "") -> dict[str, Any]:
    """Hidden states by the number of the block they enter."""
    return {f"hidden{side}.{i}": state for i, state in enumerate(states)}
