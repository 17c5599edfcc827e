"""Adapters put into a model, taken out of it, and merged with its weights."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from eqxformer.adapters.choosing import To, all_or_none, chosen, is_linear, places
from eqxformer.adapters.lora import AdaptedLinear, Adapter, LoRA
from eqxformer.checkpoints.names import name, unrolled, with_names
from eqxformer.config import nearest
from eqxformer.layers.linear import AbstractLinear


def add_lora(model: Any, lora: LoRA, *, to: To, key: PRNGKeyArray) -> Any:
    """The model with new adapters beside some of its linear maps; it computes what it did.

    Arguments:
        model: any module, such as a language model; layers may be stacked for a scan.
        lora: their rank and scale: `LoRA(...)` or `DoRA(...)`.
        to: which linear maps: paths as in the parameter table, in which `*` stands for any one
            name or number and `**` for any number of them, and which mean all that is below; or
            `Axes(out_dim="hidden")` for all whose axes are these; or several of both.
        key: what `down` is drawn from. A map's numbers depend on its path and the key alone.

    Raises `ValueError` for what leads nowhere, for a map that has an adapter already, and for some
    of several layers that are stored as one array; `NotImplementedError` for `DoRA` on experts.

    Example:
        >>> import eqxformer as ef, jax
        >>> config = ef.families.llama(vocab=65, dim=16, layers=2, heads=2, hidden=32)
        >>> model = config.build(key=jax.random.key(0))
        >>> to = ("blocks.*.attention", ef.Axes(out_dim="hidden"))
        >>> adapted = ef.add_lora(model, ef.LoRA(rank=4), to=to, key=jax.random.key(1))
        >>> trains = ef.Only(paths=("**.lora",))
        >>> ef.count(trains.of(adapted)), ef.count(model)
        (1792, 7280)
    """
    wanted = chosen(model, to)
    for path, place in wanted.items():
        _refuse_adapted(path, place.linear)
        _check_experts(path, lora, place.in_experts)

    def change(names: tuple[str, ...], node: Any) -> Any:
        if not is_linear(node) or not all_or_none(names, wanted):
            return node
        down = _drawn(lora, names, (*node.weight.shape[:-1], lora.rank), key)
        return AdaptedLinear(node, over_stack(_start(lora), node, down))

    return with_names(change, model, is_leaf=is_linear)


def adapters_of(model: Any) -> dict[str, Adapter]:
    """The adapters of a model by the paths of their linear maps, blocks numbered singly.

    Example:
        >>> import eqxformer as ef, jax
        >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
        >>> adapted = ef.add_lora(mlp, ef.LoRA(rank=2), to="up", key=jax.random.key(1))
        >>> list(ef.adapters_of(adapted))
        ['up']
    """
    # Alone, so that no other array of a stack is taken apart.
    alone = jax.tree.map(
        lambda node: node.lora if isinstance(node, AdaptedLinear) else None,
        model,
        is_leaf=is_linear,
    )
    found = jax.tree_util.tree_leaves_with_path(unrolled(alone), is_leaf=_is_adapter)
    return {name(path): node for path, node in found if _is_adapter(node)}


def with_adapters(model: Any, adapters: Mapping[str, Adapter]) -> Any:
    """The model with these adapters, as `adapters_of` gives them; errors as in `add_lora`.

    Example:
        >>> import equinox as eqx, eqxformer as ef, jax
        >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
        >>> adapted = ef.add_lora(mlp, ef.LoRA(rank=2), to="up", key=jax.random.key(1))
        >>> bool(eqx.tree_equal(ef.with_adapters(mlp, ef.adapters_of(adapted)), adapted))
        True
    """
    every = places(model)
    for path, adapter in adapters.items():
        if path not in every:
            raise ValueError(f"`{path}` is no linear map of the model.{nearest(path, every)}")
        _refuse_adapted(path, every[path].linear)
        _check_experts(path, adapter.config, every[path].in_experts)

    def change(names: tuple[str, ...], node: Any) -> Any:
        if not is_linear(node) or not all_or_none(names, adapters):
            return node
        return AdaptedLinear(node, _stacked(names, [adapters[each] for each in names], node))

    return with_names(change, model, is_leaf=is_linear)


def without_adapters(model: Any) -> Any:
    """The model as it was before it got adapters: the reference of preference tuning, say.

    Example:
        >>> import equinox as eqx, eqxformer as ef, jax
        >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
        >>> adapted = ef.add_lora(mlp, ef.LoRA(rank=2), to="up", key=jax.random.key(1))
        >>> bool(eqx.tree_equal(ef.without_adapters(adapted), mlp))
        True
    """
    return jax.tree.map(
        lambda node: node.base if isinstance(node, AdaptedLinear) else node,
        model,
        is_leaf=is_linear,
    )


def merge(model: Any) -> Any:
    """The plain model that computes the same, to rounding: what its config builds.

    Adapters are added to the weights, which keep their types, and int8 weights become float32.

    Example:
        >>> import eqxformer as ef, jax
        >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
        >>> adapted = ef.add_lora(mlp, ef.LoRA(rank=2), to="up", key=jax.random.key(1))
        >>> type(ef.merge(adapted).up).__name__
        'Linear'
    """
    return jax.tree.map(
        lambda node: over_stack(plain, node) if is_linear(node) else node,
        model,
        is_leaf=is_linear,
    )


def unmerge(model: Any, adapters: Mapping[str, Adapter]) -> Any:
    """The model before these adapters were merged into it, to rounding, with them beside it.

    Raises `NotImplementedError` for adapters of `DoRA`, whose merging loses lengths; other errors
    as in `add_lora`.

    Example:
        >>> import eqxformer as ef, jax
        >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
        >>> adapted = ef.add_lora(mlp, ef.LoRA(rank=2), to="up", key=jax.random.key(1))
        >>> again = ef.unmerge(ef.merge(adapted), ef.adapters_of(adapted))
        >>> type(again.up).__name__
        'AdaptedLinear'
    """

    def apart(names: tuple[str, ...], node: Any) -> Any:
        if not is_linear(node) or not all_or_none(names, adapters):
            return node  # adapters that were put on since stay as they are
        base = over_stack(lambda adapted: adapted.lora.unmerged(adapted.base.plain()), node)
        return AdaptedLinear(base, node.lora)

    return with_names(apart, with_adapters(model, adapters), is_leaf=is_linear)


def plain(linear: AbstractLinear) -> Any:
    """`linear.plain()`."""
    return linear.plain()


def _start(lora: LoRA) -> Callable[[AbstractLinear, Array], Adapter]:
    return lambda base, down: lora.start(down, base.plain())


def over_stack(function: Callable[..., Any], linear: AbstractLinear, *more: Any) -> Any:
    """`function` of a linear map, or of each of those that are stacked in one."""
    axes = max(leaf.ndim for leaf in jax.tree.leaves(linear)) - 2  # a map's widest is a matrix
    for _ in range(axes):
        function = eqx.filter_vmap(function)
    return function(linear, *more)


def _drawn(lora: LoRA, names: tuple[str, ...], shape: tuple[int, ...], key: PRNGKeyArray) -> Array:
    """What `down` starts as, for one map or for the layers that are stacked in one."""
    keys = [jax.random.fold_in(key, zlib.crc32(each.encode())) for each in names]
    if len(keys) == 1:
        return lora.init(keys[0], shape)
    return jnp.stack([lora.init(each, shape[1:]) for each in keys])


def _stacked(names: tuple[str, ...], adapters: list[Adapter], base: Any) -> Adapter:
    """Adapters of single layers as those of `base`, which may be layers stacked in one."""
    wanted = base.weight.shape
    ndim = adapters[0].down.weight.ndim
    if len(wanted) == ndim:
        (found,) = adapters
    elif len({jax.tree.structure(each) for each in adapters}) > 1 or not _same_shapes(adapters):
        raise ValueError(
            f"{names[0]} to {names[-1]} are stored as one array, and their adapters differ in rank "
            "or scale; use the layout `Unrolled()`."
        )
    else:
        found = jax.tree.map(lambda *each: jnp.stack(each), *adapters)
    shape = (*found.down.weight.shape[:-1], found.up.weight.shape[-1])
    if shape != wanted:
        raise ValueError(
            f"The adapter of `{names[0]}` is for a weight of shape {shape}; that is {wanted}."
        )
    return found


def _is_adapter(node: Any) -> bool:
    return isinstance(node, Adapter)


def _same_shapes(adapters: list[Adapter]) -> bool:
    return len({tuple(leaf.shape for leaf in jax.tree.leaves(each)) for each in adapters}) == 1


def _refuse_adapted(path: str, linear: Any) -> None:
    if isinstance(linear, AdaptedLinear):
        raise ValueError(
            f"`{path}` has an adapter already; `merge` the model or take it out with "
            "`without_adapters` first."
        )


def _check_experts(path: str, lora: LoRA, in_experts: bool) -> None:
    if in_experts and not lora.experts:
        raise NotImplementedError(
            f"`{path}` is a mixture's experts, which run grouped: they can have the adapters of "
            f"`LoRA`, not of `{lora.type_name}`."
        )
