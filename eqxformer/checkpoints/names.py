"""The names of a model's arrays: the same whether its blocks are stacked or stored one by one."""

import fnmatch
from collections.abc import Callable
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
    return ".".join(_of_key(key) for key in path)


def _of_key(key: Any) -> str:
    """A field by its name, an item by its number, a part in a dict by its key."""
    return str(next((getattr(key, n) for n in ("name", "idx", "key") if hasattr(key, n)), key))


def every_name(model: Any) -> Any:
    """A tree like the model's with all names of each array in its place, None elsewhere.

    An array has one name, but for layers that are stacked in one array: these have one each.
    """
    return with_names(lambda names, leaf: names if is_array(leaf) else None, model)


def with_names(
    change: Callable[[tuple[str, ...], Any], Any],
    model: Any,
    is_leaf: Callable[[Any], bool] | None = None,
) -> Any:
    """The model with `change(names, leaf)` in place of every leaf, stacks stored as they are.

    Arguments:
        change: is given all names of a leaf: one, or one for each of the layers stacked in it.
        is_leaf: what counts as a leaf besides, as in `jax.tree.map`.
    """

    def of(path: tuple[Any, ...], node: Any) -> Any:
        if not isinstance(node, Stack):
            return change((name(path),), node)
        groups, first = [], 0
        for group, size in zip(node.groups, node.sizes, strict=True):
            numbers = range(first, first + (size or 1))
            fronts = tuple(f"{name(path)}.{number}".removeprefix(".") for number in numbers)
            groups.append(
                jax.tree_util.tree_map_with_path(
                    lambda below, leaf, fronts=fronts: change(
                        tuple(f"{front}.{name(below)}" for front in fronts), leaf
                    ),
                    group,
                    is_leaf=is_leaf,
                )
            )
            first += size or 1
        return Stack(tuple(groups), node.sizes, node.layout)

    def stops(node: Any) -> bool:
        return isinstance(node, Stack) or (is_leaf is not None and is_leaf(node))

    return jax.tree_util.tree_map_with_path(of, model, is_leaf=stops)


def leads_to(path: str, name: str) -> bool:
    """Whether a path leads to what has this name, or to something that it is in.

    `*` stands for any one name or number, also within a name, and `**` for any number of names.

    Example:
        >>> from eqxformer.checkpoints.names import leads_to
        >>> leads_to("blocks.*.attention", "blocks.3.attention.query.weight")
        True
        >>> leads_to("**.bias", "head.linear.weight")
        False
    """
    return _leads(path.split("."), name.split("."))


def _leads(path: list[str], names: list[str]) -> bool:
    if not path:
        return True
    if path[0] == "**":
        return any(_leads(path[1:], names[i:]) for i in range(len(names) + (len(path) == 1)))
    return bool(names) and fnmatch.fnmatchcase(names[0], path[0]) and _leads(path[1:], names[1:])


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
