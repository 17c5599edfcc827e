"""Where each of our arrays comes from among the tensors of a reference model.

A table of rules maps a path of ours, of an array or of the part that holds it, to a name of theirs
and a function of the tensor. The functions only move numbers (transpose, slice), so that they
carry gradients over just as they carry weights.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

import eqxformer as ef
from eqxformer.checkpoints.rebuild import differences, expected, with_arrays

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class From:
    """Their tensor, or the module that holds it, and which of its numbers are ours."""

    name: str
    take: Callable[[np.ndarray], np.ndarray] = lambda tensor: tensor

    def __call__(self, leaf: str, index: str, tensors: Tensors) -> np.ndarray:
        stem = self.name.replace("*", index)
        full = stem if stem in tensors else f"{stem}.{leaf}"
        if full not in tensors:
            raise KeyError(f"The reference has neither `{stem}` nor `{full}`.")
        return self.take(tensors[full])


Rules = Mapping[str, From]


def turned(name: str) -> From:
    """A linear layer stored as [out, in]; its bias stays as it is."""
    return From(name, np.transpose)


def part(name: str, index: int, of: int) -> From:
    """One of several projections fused along the last axis of a weight stored as [in, out]."""
    return From(name, lambda tensor: np.split(tensor, of, axis=-1)[index])


def turned_part(name: str, index: int, of: int) -> From:
    """One of several projections fused along the first axis of a weight stored as [out, in]."""
    return From(name, lambda tensor: np.split(tensor, of)[index].T)


def part_per_head(name: str, index: int, *, heads: int, of: int = 3) -> From:
    """One of several projections fused within every head, of a weight stored as [out, in]."""

    def take(tensor: np.ndarray) -> np.ndarray:
        each = tensor.reshape(heads, of, -1, *tensor.shape[1:])[:, index]
        return each.reshape(-1, *tensor.shape[1:]).T

    return From(name, take)


def under(ours: str, theirs: str, rules: Rules) -> dict[str, From]:
    """Rules with a prefix on either side."""
    return {f"{ours}.{k}": From(f"{theirs}.{r.name}", r.take) for k, r in rules.items()}


def read(model: Any, rules: Rules, tensors: Tensors) -> dict[str, np.ndarray]:
    """Every array of a model by its path, as the rules find it among the reference's tensors."""
    return {path: _rule(path, rules)[1](tensors) for path in ef.named_arrays(model)}


def fill(config: Any, rules: Rules, tensors: Tensors) -> Any:
    """The model of a config with the reference's weights.

    Raises `ValueError` where an array or a tensor is left over, or a number is read twice.
    """
    skeleton = ef.shapes(config)
    _check_bijection(skeleton, rules, tensors)
    arrays = read(skeleton, rules, tensors)
    wrong = differences({path: a.shape for path, a in arrays.items()}, expected(skeleton))
    if wrong:
        raise ValueError("The reference does not fit the config:\n" + "\n".join(wrong))
    return with_arrays(skeleton, {path: jnp.asarray(array) for path, array in arrays.items()})


def _rule(path: str, rules: Rules) -> tuple[str, Callable[[Tensors], np.ndarray]]:
    """The rule of an array, by its own path or that of its part, with `*` for the layer."""
    found = re.search(r"(?<=blocks\.)\d+", path)
    index = found.group() if found else ""
    pattern = re.sub(r"(?<=blocks\.)\d+", "*", path)
    stem, _, leaf = pattern.rpartition(".")
    key = pattern if pattern in rules else stem
    if key not in rules:
        raise ValueError(f"No rule says where `{path}` comes from.")
    return key, functools.partial(rules[key], leaf, index)


def _check_bijection(skeleton: Any, rules: Rules, tensors: Tensors) -> None:
    """Reads tensors of serial numbers, and asks whether each number was read exactly once."""
    sizes = [tensor.size for tensor in tensors.values()]
    ends = np.cumsum([0, *sizes])
    serial = {
        key: np.arange(start, start + tensor.size).reshape(tensor.shape)
        for (key, tensor), start in zip(tensors.items(), ends[:-1], strict=True)
    }
    numbers = np.concatenate([n.ravel() for n in read(skeleton, rules, serial).values()])
    counts = np.bincount(numbers, minlength=ends[-1])
    wrong = [key for key in tensors if (counts[serial[key]] != 1).any()]
    idle = set(rules) - {_rule(path, rules)[0] for path in ef.named_arrays(skeleton)}
    if wrong or idle:
        raise ValueError(
            f"Not read exactly once: {wrong}. Rules that nothing uses: {sorted(idle)}."
        )
