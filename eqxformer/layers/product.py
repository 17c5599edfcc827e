"""`x @ weight` for all rows of a batch at once, in the forms that are fast on a CPU.

Other devices get the plain product: which form it is is chosen when a program is lowered for its
device, so that a program for a GPU holds no trace of this file.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eqxformer.constraints import mesh_sizes

PIECES = 8  # of a single row's product


def product(
    x: Float[Array, "*batch in_dim"], weight: Float[Array, "in_dim out_dim"]
) -> Float[Array, "*batch out_dim"]:
    """`x @ weight` over any leading axes of `x`, with the same derivatives of any order.

    On a CPU two things differ. The leading axes become one, and nothing is fused into the product
    from behind, backwards as forwards: else XLA writes the gradient of an activation into a
    transposed copy of the whole gradient, the weight's gradient is summed over two axes (a tenth of
    a training step), and activations are computed by its library of products, which reads each of
    their constants from a whole array (a third of a forward pass). And a single row, as in
    decoding, is cut in eight: a row times a weight reaches two thirds of the memory's bandwidth,
    eight pieces of it nearly all.

    Example:
        >>> import jax.numpy as jnp
        >>> from eqxformer.layers.product import product
        >>> product(jnp.ones((2, 3, 8)), jnp.ones((8, 4))).shape
        (2, 3, 4)
    """
    if "sequence" in mesh_sizes():  # one axis of rows and tokens would be one on every device
        return jnp.matmul(x, weight)
    return jax.lax.platform_dependent(x, weight, cpu=_on_cpu, default=jnp.matmul)


def _on_cpu(x: Array, weight: Array) -> Array:
    in_dim, out_dim = weight.shape
    if x.ndim > 1 and x.size == in_dim and in_dim % PIECES == 0:
        return _one_row(x.reshape(in_dim), weight).reshape(*x.shape[:-1], out_dim)
    y = _apart(x.reshape(x.size // in_dim, in_dim) @ weight)
    return y.reshape(*x.shape[:-1], out_dim)


def _apart(y: Array) -> Array:
    """`y`, in a program that computes it and what is made of it one after the other."""
    return jax.lax.optimization_barrier(unfused(y))


def unfused(y: Array) -> Array:
    """`y`, of which XLA's library of products for CPUs takes no part into what it makes of it.

    Barriers are dropped before that library gets its parts; rounding to the type that a number
    already has is not. It costs nothing where it is fused with what stands before it.
    """
    kind = jnp.finfo(y.dtype)
    return jax.lax.reduce_precision(y, exponent_bits=kind.nexp, mantissa_bits=kind.nmant)


def _one_row(row: Array, weight: Array) -> Array:
    """The sum of the pieces' products, rounded once: a small type would round each of them."""
    pieces = weight.reshape(PIECES, -1, weight.shape[1])
    kind = jnp.promote_types(row.dtype, weight.dtype)
    wide = jnp.float64 if kind == jnp.float64 else jnp.float32
    rows = row.reshape(PIECES, -1)
    parts = jnp.einsum("pi,pio->po", rows, pieces, preferred_element_type=wide)
    return parts.sum(0).astype(kind)
