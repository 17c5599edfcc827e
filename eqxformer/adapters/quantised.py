"""Weights of frozen linear maps in int8: a quarter of float32's memory."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from eqxformer.adapters.choosing import To, all_or_none, chosen, is_linear
from eqxformer.adapters.lora import AdaptedLinear
from eqxformer.adapters.surgery import over_stack
from eqxformer.checkpoints.names import with_names
from eqxformer.layers.gather import rows_of
from eqxformer.layers.linear import AbstractLinear, Groups, Linear, along_last, grouped_product
from eqxformer.layers.norms import wide_dtype, widen
from eqxformer.layers.product import product

LARGEST = 127
_SMALLER = 2.0**-7


class QuantisedLinear(AbstractLinear):
    """Linear map with an int8 weight: `y = scale * (x @ weight) + bias`, frozen.

    The weight is symmetric round zero, with a scale per output. Neither weight nor scale has a
    gradient; the bias has, and what comes before the map.

    Example:
        >>> import eqxformer as ef, jax
        >>> mlp = ef.quantise(ef.MLP(8, hidden=16, key=jax.random.key(0)), to=("up", "down"))
        >>> print(ef.table(mlp.up))
        weight  in_dim=8 out_dim=16  QuantisedLinear  int8     128  128 B
        scale            out_dim=16  QuantisedLinear  float32   16  64 B
        bias             out_dim=16  QuantisedLinear  float32   16  64 B
        total                                                  160  256 B
          int8                                                 128  128 B
          float32                                               32  128 B
    """

    in_float32: ClassVar[tuple[str, ...]] = ("scale",)

    weight: Int8[Array, "in_dim out_dim"]
    scale: Float[Array, " out_dim"]
    bias: Float[Array, " out_dim"] | None

    @staticmethod
    def of(linear: Linear) -> "QuantisedLinear":
        """The nearest map of this kind: each weight is off by half its output's scale at most."""
        weight = linear.weight.astype(jnp.float32)
        scale = jnp.abs(weight).max(0) / LARGEST
        numbers = jnp.round(weight / along_last(jnp.where(scale == 0.0, 1.0, scale), weight))
        return QuantisedLinear(numbers.astype(jnp.int8), scale, linear.bias)

    def __call__(self, x: Float[Array, "*batch in_dim"]) -> Float[Array, "*batch out_dim"]:
        y = _cast_product(_smaller(x), self.weight)
        y = _scaled(y, along_last(self.scale, y))
        return y if self.bias is None else y + along_last(self.bias, y)

    def plain(self) -> Linear:
        weight = self.weight.astype(jnp.float32)
        scale = _fixed(self.scale).astype(jnp.float32)
        return Linear.of(weight * along_last(scale, weight), self.bias)

    def bare(self) -> "QuantisedLinear":
        return QuantisedLinear(self.weight, self.scale, None)

    def grouped(self, groups: Groups) -> "GroupedQuantisedLinear":
        return GroupedQuantisedLinear(self.weight, self.scale, self.bias, groups)


class GroupedQuantisedLinear(eqx.Module):
    """A linear map per group of rows with int8 weights, as `GroupedLinear` has."""

    weight: Int8[Array, "experts in_dim out_dim"]
    scale: Float[Array, "experts out_dim"]
    bias: Float[Array, "experts out_dim"] | None
    groups: Groups

    def __call__(self, x: Float[Array, "rows in_dim"]) -> Float[Array, "rows out_dim"]:
        group = self.groups.group
        y = jax.checkpoint(grouped_product)(_smaller(x), self.weight, self.groups)
        y = _scaled(y, self.scale[group])
        return y if self.bias is None else y + rows_of(self.bias, group)


def quantise(model: Any, *, to: To) -> Any:
    """The model with the weights of some of its linear maps in int8, a scale per output.

    They are frozen from then on. Adapters go on top: quantise first, then `add_lora`. A quantised
    model cannot be saved as it is, since its config builds a plain one: quantise after loading, or
    `merge` before saving.

    Arguments:
        model: any module; layers may be stacked for a scan.
        to: which linear maps, as in `add_lora`. Those that are quantised already stay as they are.

    Raises `ValueError` for what leads nowhere, for a map with an adapter, and for some of several
    layers that are stored as one array.

    Example:
        >>> import eqxformer as ef, jax
        >>> config = ef.families.llama(vocab=65, dim=16, layers=2, heads=2, hidden=32)
        >>> model = config.build(key=jax.random.key(0))
        >>> type(ef.quantise(model, to="blocks").blocks[1].attention.query).__name__
        'QuantisedLinear'
    """
    wanted = chosen(model, to)
    for path, place in wanted.items():
        if isinstance(place.linear, AdaptedLinear):
            raise ValueError(f"`{path}` has an adapter; quantise first, then `add_lora`.")

    def change(names: tuple[str, ...], node: Any) -> Any:
        if not is_linear(node) or not all_or_none(names, wanted) or not isinstance(node, Linear):
            return node
        return over_stack(QuantisedLinear.of, node)

    return with_names(change, model, is_leaf=is_linear)


@jax.checkpoint
def _cast_product(x: Array, weight: Array) -> Array:
    """`x @ weight`, which keeps for the backward pass the weight in int8, not the one it casts."""
    return product(x, weight.astype(x.dtype))


def _smaller(x: Array) -> Array:
    """`x`, in float16 divided by 128: with whole numbers up to 127, sums would pass its 65,504."""
    return x * _SMALLER if x.dtype == jnp.float16 else x


def _scaled(y: Array, scale: Array) -> Array:
    """A product with whole numbers times its scale, multiplied in float32 and rounded once."""
    scale = _fixed(scale).astype(wide_dtype(y))
    scale = scale / _SMALLER if y.dtype == jnp.float16 else scale
    return (widen(y) * scale).astype(y.dtype)


def _fixed(scale: Array) -> Array:
    return jax.lax.stop_gradient(scale)
