"""The number types of a training step: what is kept, what is computed with, what comes out."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxformer.config import Config
from eqxformer.layers.wide import stays_wide

Floating = Literal["float32", "bfloat16", "float16"]


class Precision(Config):
    """Which number types a training step keeps, computes with and gives out.

    Softmax, norms, rotary tables and losses are made in float32 whatever these say. Little arrays
    that must not be rounded stay as they are in a small type: the router of experts and their
    correction, scales of int8 weights, the magnitudes of `DoRA`.

    Arguments:
        parameters: the type of the weights that are kept and updated, and of the optimizer's memory
            of them. Updates are small against weights: bfloat16, with 8 bits, loses most of them.
            Those that are not trained stay in the type they have.
        compute: the type that weights are cast to for a forward and backward pass. Losses are not
            scaled up for float16, which holds nothing below 6e-8: of the gradients of a mean over
            many tokens it loses a part, and bfloat16 does not.
        output: the type of losses and metrics. Gradients have that of the parameters; those of a
            batch in parts are summed in float32.

    Example:
        >>> import eqxformer as ef
        >>> ef.Precision(compute="bfloat16").parameters
        'float32'
    """

    parameters: Floating = "float32"
    compute: Floating = "float32"
    output: Floating = "float32"

    def kept(self, model: Any) -> Any:
        """What is trained of a model as it is kept and updated."""
        return cast(model, self.parameters)

    def computing(self, model: Any) -> Any:
        """The model as it computes."""
        return cast(model, self.compute)

    def given(self, results: Any) -> Any:
        """Losses or metrics as they are given out."""
        return cast(results, self.output)


def cast(tree: Any, dtype: Floating) -> Any:
    """A tree with its arrays of floating types in another; those of other types stay.

    So do those that a module keeps in float32, in a type smaller than that.
    """
    kind = jnp.dtype(dtype)

    def of(path: tuple[Any, ...], x: Any) -> Any:
        if not eqx.is_inexact_array(x) or x.dtype == kind:
            return x
        return x if kind.itemsize < 4 and stays_wide(tree, path) else x.astype(kind)

    return jax.tree_util.tree_map_with_path(of, tree)
