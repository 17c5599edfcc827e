"""Models from configs: shapes without memory, and one model's arrays in another's tree."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax

from eqxformer.checkpoints.names import (
    is_array,
    name,
    named_arrays,
    restacked,
    unrolled,
    with_names,
)
from eqxformer.layers.linear import AbstractLinear, Linear
from eqxformer.layers.taps import HELD


def shapes(config: Any) -> Any:
    """The model of a config with the shapes of its arrays in their place; no memory is used.

    Example:
        >>> import eqxformer as ef
        >>> config = ef.families.gpt(vocab=50257, dim=768, layers=12, heads=12, context=1024)
        >>> ef.shapes(config).embedding.tokens.weight
        ShapeDtypeStruct(shape=(50257, 768), dtype=float32)
    """
    return eqx.filter_eval_shape(lambda key: config.build(key=key), jax.random.key(0))


def rebuild(model: Any, config: Any) -> Any:
    """The arrays of `model` in the model of another config: for what a config can change later.

    Layouts, rematerialisation, dropout, windows, backends: everything that leaves the names and
    shapes of the arrays as they are. Raises `ValueError` with a list of what differs otherwise,
    and for a model with adapters or int8 weights: `merge` it, or change it before it gets them.

    Example:
        >>> import eqxformer as ef, jax
        >>> config = ef.families.gpt(vocab=5, dim=4, layers=2, heads=2, context=8)
        >>> model = config.build(key=jax.random.key(0))
        >>> scanned = ef.rebuild(model, config.edit(layout=ef.Scanned()))
        >>> scanned.blocks.sizes
        (2,)
    """
    check_plain(model)
    skeleton, arrays = shapes(config), named_arrays(model)
    wrong = differences({k: v.shape for k, v in arrays.items()}, expected(skeleton))
    if wrong:
        raise ValueError("The arrays do not fit this config:\n  " + "\n  ".join(wrong))
    return with_arrays(skeleton, arrays)


def check_plain(model: Any) -> None:
    """Raises `ValueError` for a model with parts that no config makes: adapted or patched ones.

    It computes something else than what its config builds, or has arrays of other names.
    """

    def check(names: tuple[str, ...], part: Any) -> None:
        if hasattr(part, HELD):
            raise ValueError(
                f"`{names[0].strip('.')}` is patched, which no config makes: `without_patches` "
                "gives the plain model."
            )
        if _is_linear(part) and not isinstance(part, Linear):
            kind = type(part).__name__
            raise ValueError(
                f"`{names[0]}` is {'an' if kind[0] in 'AEIOU' else 'a'} {kind}, which no config "
                "makes: `merge` gives a plain model, `save_adapters` writes adapters alone, and "
                "`without_adapters` gives the model without them."
            )

    with_names(check, model, is_leaf=lambda part: _is_linear(part) or hasattr(part, HELD))


def with_arrays(skeleton: Any, arrays: Mapping[str, Any]) -> Any:
    """`skeleton` with the array of its name, or what stands for it, in place of every shape."""
    filled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: arrays[name(path)] if is_array(leaf) else leaf, unrolled(skeleton)
    )
    return restacked(filled, skeleton)


def expected(skeleton: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every array of a model by its name."""
    return {key: tuple(leaf.shape) for key, leaf in named_arrays(skeleton).items()}


def differences(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """A line for every array that is missing, unexpected or of another shape."""
    lines = [f"missing: {key} {shape}" for key, shape in wanted.items() if key not in found]
    lines += [f"unexpected: {key} {shape}" for key, shape in found.items() if key not in wanted]
    lines += [
        f"shape: {key} is {tuple(found[key])}, expected {shape}"
        for key, shape in wanted.items()
        if key in found and tuple(found[key]) != tuple(shape)
    ]
    return lines


def _is_linear(node: Any) -> bool:
    return isinstance(node, AbstractLinear)
