"""The names of a model's arrays: the same whether its blocks are stacked or stored one by one."""

from typing import Any

import equinox as eqx
import jax

from eqxformer.blocks.stack import Stack


def named_arrays(model: Any) -> dict[str, Any]:
    """Every array of a model, or every shape of its shapes, by its path, blocks numbered singly.

    Example:
        >>> import eqxformer as ef, jax
        >>> config = ef.families.gpt(vocab=5, dim=4, layers=2, heads=2, context=8)
        >>> names = ef.named_arrays(config.build(key=jax.random.key(0)))
        >>> names["blocks.1.attention.query.weight"].shape
        (4, 4)
    """
    leaves = jax.tree_util.tree_leaves_with_path(unrolled(model))
    return {name(path): leaf for path, leaf in leaves if is_array(leaf)}


def name(path: tuple[Any, ...]) -> str:
    """A key path of a pytree as names joined by dots."""
    return ".".join(str(getattr(key, "name", getattr(key, "idx", key))) for key in path)


def every_name(model: Any) -> Any:
    """A tree like the model's with all names of each array in its place, None elsewhere.

    An array has one name, but for layers that are stacked in one array: these have one each.
    """

    def of(path: tuple[Any, ...], node: Any) -> Any:
        if not isinstance(node, Stack):
            return (name(path),) if is_array(node) else None
        groups, first = [], 0
        for group, size in zip(node.groups, node.sizes, strict=True):
            numbers = range(first, first + (size or 1))
            fronts = tuple(f"{name(path)}.{number}".removeprefix(".") for number in numbers)
            groups.append(
                jax.tree_util.tree_map_with_path(
                    lambda below, leaf, fronts=fronts: (
                        tuple(f"{front}.{name(below)}" for front in fronts)
                        if is_array(leaf)
                        else None
                    ),
                    group,
                )
            )
            first += size or 1
        return Stack(tuple(groups), node.sizes, node.layout)

    return jax.tree_util.tree_map_with_path(of, model, is_leaf=lambda n: isinstance(n, Stack))


def unrolled(model: Any) -> Any:
    """The model with every stack in place of a plain tuple of its blocks."""

    def blocks(node: Any) -> Any:
        return tuple(node) if isinstance(node, Stack) else node

    return jax.tree.map(blocks, model, is_leaf=lambda node: isinstance(node, Stack))


def restacked(model: Any, like: Any) -> Any:
    """The inverse of `unrolled`: plain tuples of blocks stored as the stacks of `like` are."""

    def stack(node: Any, blocks: Any) -> Any:
        return Stack.of(blocks, node.layout, node.sizes) if isinstance(node, Stack) else blocks

    return jax.tree.map(stack, like, model, is_leaf=lambda node: isinstance(node, Stack))


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array or the shape of one."""
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
