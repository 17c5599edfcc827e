"""Where activations lie on a mesh: the one place that says it, and does nothing without a mesh.

XLA spreads a program over devices by following where its inputs lie. Where the same axis of a mesh
cuts the rows of the batch and the width of every weight, it may follow either, and it follows the
weights: every device computes a part of each row, and the activations of the whole batch are summed
after each product. So the model itself says where activations lie: between blocks
(`blocks/stack.py`), in attention (`layers/dot_product.py`), and of a table, where its rows are
looked up (`layers/embedding.py`). The rest follows from these.

The mesh is that of `jax.set_mesh`, which a training step sets by itself. JAX looks at it when it
looks for a compiled program, so that one for another mesh is never taken.
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Shaped

MESH_AXES: dict[str, str] = {
    "data": "rows of the batch; every device has all weights",
    "fsdp": "rows of the batch, and a part of every matrix, which is gathered when it is used",
    "expert": "rows of the batch, and whole experts, which rows are sent to",
    "sequence": "tokens of a row, whose keys and values are gathered",
    "tensor": "heads, hidden units and the vocabulary, whose products are summed",
}
ROWS = ("data", "fsdp", "expert")  # what cuts the rows of a batch, coarsest first

# The axes of the mesh that cut an axis of activations. What is not here is whole on every device.
CUTS: dict[str, tuple[str, ...]] = {
    "batch": ROWS,
    "seq": ("sequence",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "vocab": ("tensor",),
}


def constrain(x: Shaped[Array, "..."], *words: str) -> Shaped[Array, "..."]:
    """`x`, laid on the mesh as its last axes are called; all axes before them are the batch.

    An axis that the mesh does not divide is whole. Without a mesh this is `x` itself.

    Example:
        >>> import jax.numpy as jnp
        >>> from eqxformer.constraints import constrain
        >>> constrain(jnp.ones((2, 3, 8)), "seq", "dim").shape
        (2, 3, 8)
    """
    sizes = mesh_sizes()
    if not sizes:
        return x
    front = x.ndim - len(words)
    spoken = ("batch", *("",) * (front - 1), *words) if front else words
    pairs = zip(spoken, x.shape, strict=True)
    spec = PartitionSpec(*(cut(CUTS.get(word, ()), size, sizes) for word, size in pairs))
    return jax.lax.with_sharding_constraint(x, spec)


def fetched(x: Shaped[Array, "..."]) -> Shaped[np.ndarray, "..."]:
    """The numbers of an array on this host, wherever it lies; every process must ask for those.

    Example:
        >>> import jax.numpy as jnp
        >>> from eqxformer.constraints import fetched
        >>> fetched(jnp.arange(3))
        array([0, 1, 2], dtype=int32)
    """
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return np.asarray(x)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(x, tiled=True))


def mesh_sizes() -> dict[str, int]:
    """The axes of the mesh that is set, and their sizes; without those that cut nothing.

    Axes that a `jax.shard_map` has in its own hands are left out too.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {name: size for name, size, kind in kinds if size > 1 and kind == AxisType.Auto}


def token_shares() -> int:
    """How many devices the tokens of a batch are dealt out to; 1 without a mesh."""
    sizes = mesh_sizes()
    return math.prod(sizes[axis] for axis in (*ROWS, "sequence") if axis in sizes)


def cut(axes: tuple[str, ...], size: int, sizes: dict[str, int]) -> tuple[str, ...]:
    """The axes of the mesh, of those given, that divide an axis of so many, one after the other."""
    found: tuple[str, ...] = ()
    for axis in axes:
        if axis in sizes and size % sizes[axis] == 0:
            found, size = (*found, axis), size // sizes[axis]
    return found
