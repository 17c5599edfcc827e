"""Trees as lists of their arrays, so that calling a compiled function costs little.

`eqx.filter_jit` takes its arguments apart and puts its results together anew in every call, which
takes a millisecond for a small model and its optimizer; here what one call returns goes into the
next as it is.
"""

import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eqxformer.sharding.mirror import on_mesh
from eqxformer.training.assembly import Assembly, filled


@dataclasses.dataclass(frozen=True)
class Shape:
    """A tree without its arrays: its structure, and every leaf that is no array, else None."""

    structure: Any
    fixed: tuple[Any, ...]

    @functools.cached_property
    def lasts(self) -> bool:
        """Whether no tree of this shape can change after it is made: it has no list and no dict."""
        return _lasts(self.structure)

    @functools.cached_property
    def put_together(self) -> Callable[[Sequence[Any]], Any]:
        """What makes a tree of this shape of its arrays."""
        if self.lasts:  # trees may have parts in common
            with contextlib.suppress(TypeError):
                return Assembly(self.structure, self.fixed)
        return self._unflattened

    def _unflattened(self, arrays: Sequence[Any]) -> Any:
        return jax.tree.unflatten(self.structure, filled(self.fixed, arrays))


class Flat:
    """The arrays of a tree in a row, and its shape: to JAX one node, however deep the tree."""

    def __init__(self, arrays: tuple[Any, ...], shape: Shape):
        self.arrays = arrays
        self.shape = shape

    @functools.cached_property
    def spread(self) -> "Spread | None":
        """Where the arrays lie on a mesh; None where they lie on none."""
        mesh = next((x.sharding.mesh for x in self.arrays if on_mesh(x)), None)
        if mesh is None:
            return None
        whole = NamedSharding(mesh, PartitionSpec())
        return Spread(
            mesh, self.shape, tuple(x.sharding if on_mesh(x) else whole for x in self.arrays)
        )

    @functools.cached_property
    def on_cpu(self) -> bool:
        """Whether the arrays lie on a CPU; of arrays that lie nowhere yet, where new ones do."""
        lying = (x for x in self.arrays if isinstance(x, jax.Array) and not isinstance(x, Tracer))
        devices = next((x.devices() for x in lying), frozenset())
        return {d.platform for d in devices or jax.local_devices()[:1]} == {"cpu"}

    @functools.cached_property
    def traced(self) -> bool:
        """Whether they are those of a function that is being traced, one or all of them."""
        return any(isinstance(x, Tracer) for x in self.arrays)

    @staticmethod
    def of(tree: Any) -> "Flat":
        """A tree taken apart; at once for one that `tree()` has made."""
        made, flat = _MADE.get(id(tree), (None, None))
        if made is not None and flat is not None and made() is tree:
            return flat
        leaves, structure = jax.tree.flatten(tree)
        fixed = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
        return Flat(tuple(leaf for leaf in leaves if _is_array(leaf)), Shape(structure, fixed))

    def tree(self) -> Any:
        """The tree, put together."""
        tree = self.shape.put_together(self.arrays)
        if isinstance(tree, eqx.Module) and self.shape.lasts:
            # Modules are frozen, so it stays true. An attribute would be a part of its structure.
            number = id(tree)
            _MADE[number] = weakref.ref(tree, lambda _: _MADE.pop(number, None)), self
        return tree


_MADE: dict[int, tuple[weakref.ref[Any], Flat]] = {}  # the trees that live, by their `id`


@dataclasses.dataclass(frozen=True)
class Spread:
    """Where the arrays of a `Flat` lie on a mesh; a training step leaves them there."""

    mesh: Mesh
    shape: Shape
    shardings: tuple[NamedSharding, ...]

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.mesh, self.shape, self.shardings))


jax.tree_util.register_pytree_node(
    Flat, lambda flat: (flat.arrays, flat.shape), lambda shape, arrays: Flat(tuple(arrays), shape)
)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


def _lasts(structure: Any) -> bool:
    node = structure.node_data()
    if node is None:  # a leaf
        return True
    kind = node[0]
    frozen = issubclass(kind, (tuple, type(None), eqx.Module))
    return frozen and all(map(_lasts, structure.children()))
