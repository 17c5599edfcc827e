"""What the backward pass of a model needs of the forward pass, per token, as JAX counts it."""

import functools
import itertools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxformer.checkpoints.names import is_array
from eqxformer.checkpoints.rebuild import shapes
from eqxformer.config import paths
from eqxformer.training.precision import Precision
from eqxformer.training.traffic import body, sides

# Of the batches that are traced: so many rows, and twice as many, of so many tokens or a few more.
# With rows this short, what attention keeps of pairs of tokens hardly counts; with so many, the
# rounding of experts' shares.
_ROWS, _LENGTH = 1009, 3


class Kept(NamedTuple):
    """Bytes kept for the backward pass per token, and those of them that `tensor` cuts."""

    token: float
    cut: float

    def bytes(self, tokens: int, tensor: int) -> int:
        """Those of so many tokens on one device."""
        return round(tokens * (self.token - self.cut + self.cut / tensor))

    def beyond(self, other: "Kept", blocks: int) -> "Kept":
        """What each block keeps more than in `other`."""
        token, cut = (max(a - b, 0.0) / blocks for a, b in zip(self, other, strict=True))
        return Kept(token, cut)


def kept(config: Any, precision: Precision, tensor: int) -> Kept:
    """What a token keeps, and what of it is cut where so many devices share what they can."""
    token, leaves = _traced(config, precision)
    return Kept(token, token * _cut_share(config, leaves, tensor))


@functools.lru_cache(maxsize=32)
def _traced(config: Any, precision: Precision) -> tuple[float, list[Any]]:
    """What a token keeps, told from what twice as many rows keep more; the rest is weights.

    With the shapes of all that these rows keep, in which no axis of tokens is as long as one that
    `tensor` may cut.
    """
    sizes, skeleton = _sizes(config), shapes(config)
    length = next(n for n in itertools.count(_LENGTH) if n not in sizes)
    once, twice = (_residuals(skeleton, precision, rows, length) for rows in (_ROWS, 2 * _ROWS))
    return (_bytes(twice) - _bytes(once)) / (_ROWS * length), twice


def _residuals(skeleton: Any, precision: Precision, rows: int, length: int) -> list[Any]:
    """Shapes of what is kept for the backward pass of a batch, with the weights."""
    arrays, fixed = eqx.partition(skeleton, is_array)
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def residuals(arrays: Any, tokens: Any) -> list[Any]:
        def states(arrays: Any) -> Any:
            model = body(precision.computing(eqx.combine(arrays, fixed)))
            return model.run(*(tokens,) * len(sides(model.config)))[0]

        _, back = jax.vjp(states, arrays)
        return list({id(leaf): leaf for leaf in jax.tree.leaves(back)}.values())

    return jax.eval_shape(residuals, arrays, tokens)


def _cut_share(config: Any, leaves: list[Any], tensor: int) -> float:
    """The share of activations that lie by heads or by hidden units, as their sizes show."""
    sizes = {size for size in _sizes(config) if size % tensor == 0}
    rows = 2 * _ROWS
    of_rows = [leaf for leaf in leaves if rows in leaf.shape[:2]]
    cut = [leaf for leaf in of_rows if sizes & set(leaf.shape[leaf.shape.index(rows) + 1 :])]
    return _bytes(cut) / max(_bytes(of_rows), 1)


def _sizes(config: Any) -> set[int]:
    """How many heads and hidden units there are, but for what may be another axis as well."""
    words, parts = ("heads", "kv_heads", "hidden"), paths(config).values()
    found = (getattr(part, word, None) for part in parts for word in words)
    others = {1, *(side.dim for side in sides(config))}
    return {size for size in found if isinstance(size, int)} - others


def _bytes(leaves: list[Any]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
