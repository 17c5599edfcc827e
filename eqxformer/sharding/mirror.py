"""Where what belongs to a parameter lies: moments, averages, gradients of it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eqxformer.checkpoints.names import is_array
from eqxformer.sharding.moving import moved
from eqxformer.sharding.rules import Place, short

Path = tuple[str, ...]


def mirrored(tree: Any, parameters: Mapping[Path, Place]) -> Any:
    """How every array of a tree is cut, None in place of all else.

    An optimizer's memory has the paths of the parameters as the ends of its own. An array at such a
    path lies as the parameter does if it has its shape; one that lacks an axis of it, as the row
    and the column that Adafactor keeps of a matrix, is cut as the others are. All else is whole.
    """

    def of(path: Any, leaf: Any) -> PartitionSpec | None:
        if not is_array(leaf):
            return None
        names = parts(path)
        ends = (names[i:] for i in range(len(names)))
        found = next((parameters[end] for end in ends if end in parameters), None)
        return PartitionSpec() if found is None else _beside(tuple(leaf.shape), found)

    return jax.tree_util.tree_map_with_path(of, tree)


def parts(path: Any) -> Path:
    """The names and numbers of a key path."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def lying(model: Any) -> tuple[Mesh, dict[Path, Place]] | None:
    """The mesh of a model's arrays, and how they are cut; None where they lie on no mesh."""
    leaves = jax.tree_util.tree_leaves_with_path(model)
    found = {parts(path): leaf for path, leaf in leaves if on_mesh(leaf)}
    if not found:
        return None
    cuts = {path: Place(tuple(leaf.shape), leaf.sharding.spec, ()) for path, leaf in found.items()}
    return next(iter(found.values())).sharding.mesh, cuts


def beside(make: Callable[[Any], Any], parameters: Any) -> Any:
    """What `make` makes of parameters, each array of it where its parameter lies on a mesh."""
    found = lying(parameters)
    if found is None:
        return make(parameters)
    mesh, places = found
    where = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        mirrored(jax.eval_shape(make, parameters), places),
        is_leaf=lambda node: isinstance(node, PartitionSpec),
    )
    return jax.jit(make, out_shardings=where)(parameters)


def everywhere(tree: Any, *, like: Any) -> Any:
    """Arrays whole on every device of the mesh that those of `like` lie on, if it is one."""
    found = lying(like)
    if found is None:
        return tree
    where = NamedSharding(found[0], PartitionSpec())
    return jax.tree.map(lambda x: moved(x, where), tree)


def on_mesh(leaf: Any) -> bool:
    """Whether a leaf is an array that lies on a mesh of several devices."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
        return False
    return isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh.size > 1


def _beside(shape: tuple[int, ...], parameter: Place) -> PartitionSpec:
    if shape == parameter.shape:
        return parameter.spec
    full = (*parameter.spec, *(None,) * (len(parameter.shape) - len(parameter.spec)))
    for gone in range(len(parameter.shape)):
        rest = [i for i in range(len(parameter.shape)) if i != gone]
        if shape == tuple(parameter.shape[i] for i in rest):
            return short(full[i] for i in rest)
    return PartitionSpec()
