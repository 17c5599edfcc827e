"""A stack of blocks, equal or not, run one by one or as scans over groups of equal ones."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from eqxformer.blocks.block import AbstractBlock, Context
from eqxformer.config import Config
from eqxformer.constraints import constrain
from eqxformer.keys import fold
from eqxformer.layers.feed_forward import RouterLosses
from eqxformer.layers.taps import collected, hand_on, taps_of_layers, through
from eqxformer.layers.wide import stays_wide
from eqxformer.traces import traced_once

Remat = Literal["nothing_saved", "dots_saved"] | None
Runs = tuple[tuple[AbstractBlock.Config, int], ...]


class Layout(Config):
    """How a stack stores and runs its blocks; the values computed are the same.

    `remat` trades time for memory in the backward pass: `nothing_saved` keeps only the input of
    every block, `dots_saved` also the results of its matrix products with weights (Chen et al.
    2016). One of your own defines `groups`.

    Arguments:
        remat: what is kept for the backward pass; all of it if None.

    Example:
        >>> import eqxformer as ef
        >>> class Halves(ef.Layout):
        ...     def groups(self, runs):
        ...         return [(config, count // 2) for config, count in runs for _ in range(2)]
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=4, heads=2, context=8)
        >>> ef.shapes(config.edit(layout=Halves())).blocks.sizes
        (2, 2)
    """

    remat: Remat = None

    def groups(self, runs: Runs) -> list[tuple[AbstractBlock.Config, int | None]]:
        """Which blocks are stored together: a config and how many blocks, None for one alone."""
        raise NotImplementedError(f"{self.type_name} must define `groups`.")


class Unrolled(Layout):
    """Every block by itself: best for decoding, on a CPU, and for shallow models.

    Example:
        >>> import eqxformer as ef
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=2, heads=2, context=8)
        >>> ef.shapes(config.edit(layout=ef.Unrolled())).blocks[1].attention.query.weight.shape
        (16, 16)
    """

    def groups(self, runs: Runs) -> list[tuple[AbstractBlock.Config, int | None]]:
        return [(config, None) for config, count in runs for _ in range(count)]


class Scanned(Layout):
    """Neighbours of one config stacked and scanned: compile time does not grow with depth.

    Their arrays get an axis `layers` in front.

    Example:
        >>> import eqxformer as ef
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=2, heads=2, context=8)
        >>> model = ef.shapes(config.edit(layout=ef.Scanned(remat="nothing_saved")))
        >>> model.blocks.groups[0].attention.query.weight.shape
        (2, 16, 16)
    """

    def groups(self, runs: Runs) -> list[tuple[AbstractBlock.Config, int | None]]:
        return [(config, count if count > 1 else None) for config, count in runs]


class Stack(eqx.Module):
    """Blocks in a row; `stack[i]` is the `i`-th, however they are stored.

    Arguments:
        groups: the blocks; those of a group are one, with an axis `layers` in front of its arrays.
        sizes: how many blocks each group has; None for one without that axis.
        layout: how they are stored and run.

    Example:
        >>> import eqxformer as ef
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=3, heads=2, context=8)
        >>> blocks = ef.shapes(config.edit(layout=ef.Scanned())).blocks
        >>> len(blocks), blocks.sizes, blocks[2].attention.query.weight.shape
        (3, (3,), (16, 16))
    """

    groups: tuple[AbstractBlock, ...]
    sizes: tuple[int | None, ...] = eqx.field(static=True)
    layout: Layout = eqx.field(static=True)

    @staticmethod
    def build(
        configs: tuple[AbstractBlock.Config, ...],
        *,
        dim: int,
        source_dim: int | None = None,
        layout: Layout,
        key: PRNGKeyArray,
    ) -> "Stack":
        """The blocks of these configs; the `i`-th is drawn from the key folded with `i`."""

        @traced_once
        def build(config: AbstractBlock.Config, key: PRNGKeyArray) -> AbstractBlock:
            return config.build(dim, source_dim=source_dim, key=key)

        def block(config: AbstractBlock.Config, index: int | Array) -> AbstractBlock:
            return build(config, jax.random.fold_in(key, index))

        groups, sizes, layer = [], [], 0
        for config, size in _groups(layout, configs):
            if size is None:
                groups.append(block(config, layer))
            elif isinstance(key, Tracer):
                several = eqx.filter_vmap(functools.partial(block, config))
                groups.append(several(layer + jnp.arange(size)))
            else:  # all at once, each weight compiles for twice as long, and anew for each depth
                groups.append(_stacked([block(config, layer + i) for i in range(size)]))
            sizes.append(size)
            layer += size or 1
        return Stack(tuple(groups), tuple(sizes), layout)

    def run(
        self,
        x: Float[Array, "*batch seq dim"],
        context: Context,
        *,
        caches: tuple[Any, ...] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*batch seq dim"], tuple[Any, ...] | None, RouterLosses | None]:
        """All blocks in turn: the output, the caches, and the routers' losses summed."""
        step = _rematerialised(_step, self.layout.remat)
        one = traced_once(step) if self.sizes.count(None) > 1 else step
        new_caches, losses, layer = [], [], 0
        for i, (group, size) in enumerate(zip(self.groups, self.sizes, strict=True)):
            cache = None if caches is None else caches[i]
            if size is None:
                x, cache, loss = one(group, x, context, cache, fold(key, layer))
            else:
                x, cache, loss = _scan(step, size)(group, x, context, cache, key, layer)
            new_caches.append(cache)
            losses += [] if loss is None else [loss]
            layer += size or 1
        total = jax.tree.map(lambda *each: sum(each), *losses) if losses else None
        return x, None if caches is None else tuple(new_caches), total

    def init_caches(
        self,
        batch: tuple[int, ...],
        slots: int,
        *,
        source: Float[Array, "*batch keys source_dim"] | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> tuple[Any, ...]:
        """An empty cache per group."""

        def empty(block: AbstractBlock) -> Any:
            return block.init_cache(batch, slots, source=source, dtype=dtype)

        return tuple(
            empty(group) if size is None else eqx.filter_vmap(empty, axis_size=size)(group)
            for group, size in zip(self.groups, self.sizes, strict=True)
        )

    def regrouped(self, sizes: tuple[int | None, ...]) -> "Stack":
        """The same blocks in smaller groups: each of these sizes is a part of one group."""
        rest, groups = iter(sizes), []
        for group, whole in zip(self.groups, self.sizes, strict=True):
            first = 0
            while first < (whole or 1):
                size = next(rest)
                part = first if size is None else slice(first, first + size)
                groups.append(group if size == whole else _slice(group, part))
                first += size or 1
        return Stack(tuple(groups), sizes, self.layout)

    @staticmethod
    def of(
        blocks: Sequence[AbstractBlock], layout: Layout, sizes: tuple[int | None, ...]
    ) -> "Stack":
        """Single blocks stored in groups of these sizes."""
        rest, groups = iter(blocks), []
        for size in sizes:
            several = list(itertools.islice(rest, size or 1))
            groups.append(several[0] if size is None else _stacked(several))
        return Stack(tuple(groups), sizes, layout)

    def leading_axes(self, field: str) -> tuple[tuple[str, ...], ...]:
        """The axis in front of the leaves of every group, for the table of axes."""
        return tuple(() if size is None else ("layers",) for size in self.sizes)

    def __len__(self) -> int:
        return sum(size or 1 for size in self.sizes)

    def __iter__(self) -> Iterator[AbstractBlock]:
        for group, size in zip(self.groups, self.sizes, strict=True):
            if size is None:
                yield group
            else:
                yield from (_slice(group, i) for i in range(size))

    def __getitem__(self, index: int) -> AbstractBlock:
        return tuple(self)[index]


def _runs(configs: tuple[AbstractBlock.Config, ...]) -> Runs:
    """Equal neighbours, counted."""
    return tuple((config, len(list(run))) for config, run in itertools.groupby(configs))


def _groups(
    layout: Layout, configs: tuple[AbstractBlock.Config, ...]
) -> list[tuple[AbstractBlock.Config, int | None]]:
    """How the layout groups the blocks, all of which must be there, in their order."""
    groups = layout.groups(_runs(configs))
    found = [config for config, size in groups for _ in range(size or 1)]
    if found != list(configs):
        raise ValueError(
            f"`groups` of {layout.type_name} must hold the {len(configs)} blocks in their order; "
            f"got {len(found)}, or others."
        )
    return groups


def _step(
    block: AbstractBlock,
    x: Array,
    context: Context,
    cache: Any,
    key: PRNGKeyArray | None,
) -> tuple[Array, Any, RouterLosses | None]:
    x = constrain(x, "seq", "dim")
    x, cache, losses = block.run(x, context, cache=cache, key=key)
    return constrain(x, "seq", "dim"), cache, losses


def _rematerialised(step: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    if remat is None:
        return step
    policies = jax.checkpoint_policies
    saved = policies.dots_with_no_batch_dims_saveable if remat == "dots_saved" else None
    return through(functools.partial(eqx.filter_checkpoint, policy=saved), step)


def _scan(step: Callable[..., Any], size: int) -> Callable[..., Any]:
    """`step` over the leading axis of a group of blocks and of their caches."""

    def run(
        group: AbstractBlock,
        x: Array,
        context: Context,
        cache: Any,
        key: PRNGKeyArray | None,
        layer: int,
    ) -> tuple[Array, Any, RouterLosses | None]:
        x = _widened(step, group, x, context, cache, key)
        arrays, static = eqx.partition(group, eqx.is_array)

        def body(x: Array, each: tuple[Any, Any, Array]) -> tuple[Array, tuple[Any, Any, Any]]:
            block = eqx.combine(each[0], static)
            done, taken = collected(step)(block, x, context, each[1], fold(key, each[2]))
            out, new_cache, losses = done
            return out.astype(x.dtype), (new_cache, losses, taken)

        layers = layer + jnp.arange(size)
        x, (caches, losses, taken) = jax.lax.scan(body, x, (arrays, cache, layers))
        hand_on(taken, size)
        return x, caches, jax.tree.map(lambda each: each.sum(0), losses)

    return run


def _widened(
    step: Callable[..., Any],
    group: AbstractBlock,
    x: Array,
    context: Context,
    cache: Any,
    key: PRNGKeyArray | None,
) -> Array:
    """`x` in the type that it leaves a block in, which a scan must know before the first.

    Weights wider than what comes in, such as trained ones in a bfloat16 model, widen it. Only where
    there are such is a block traced to find out.
    """
    leaves = jax.tree_util.tree_leaves_with_path((group, context, cache))
    given = ((group, context, cache), x.dtype)
    if not any(_may_widen(leaf, path, *given) for path, leaf in leaves):
        return x
    first = jax.tree.map(lambda leaf: leaf[0], eqx.filter((group, cache), eqx.is_array))
    block, before = eqx.combine(first, eqx.filter((group, cache), eqx.is_array, inverse=True))
    out = eqx.filter_eval_shape(collected(step), block, x, context, before, key)[0][0]
    return x.astype(jnp.promote_types(x.dtype, out.dtype))


def _may_widen(leaf: Any, path: tuple[Any, ...], tree: Any, dtype: Any) -> bool:
    """Whether numbers of this type would be widened by this leaf of a tree, if it met them."""
    if not eqx.is_inexact_array(leaf) or leaf.dtype == dtype:
        return False
    return jnp.finfo(leaf.dtype).bits >= jnp.finfo(dtype).bits and not stays_wide(tree, path)


def _slice(group: AbstractBlock, index: int | slice) -> AbstractBlock:
    group = taps_of_layers(group, index)
    return jax.tree.map(lambda leaf: _slice_leaf(leaf, index) if _is_array(leaf) else leaf, group)


def _stacked(blocks: list[AbstractBlock]) -> AbstractBlock:
    """The blocks in one, taken from the list: each array is let go once it is in the stack."""
    structure = jax.tree.structure(blocks[0])
    leaves = [jax.tree.leaves(block) for block in blocks]
    blocks.clear()
    stacked = []
    for place in range(structure.num_leaves):
        each = tuple(of[place] for of in leaves)
        stacked.append(_stack_leaf(each) if _is_array(each[0]) else each[0])
        for of in leaves:
            of[place] = None
    return jax.tree.unflatten(structure, stacked)


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _slice_leaf(leaf: Any, index: int | slice) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        length = len(range(leaf.shape[0])[index]) if isinstance(index, slice) else None
        front = () if length is None else (length,)
        return jax.ShapeDtypeStruct((*front, *leaf.shape[1:]), leaf.dtype)
    return leaf[index]


def _stack_leaf(leaves: tuple[Any, ...]) -> Any:
    if isinstance(leaves[0], jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(leaves), *leaves[0].shape), leaves[0].dtype)
    return jnp.stack(leaves)
