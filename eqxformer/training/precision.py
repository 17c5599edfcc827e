"""The number types of a training step: what is kept, what is computed with, what comes out."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxformer.config import Config

Floating = Literal["float32", "bfloat16", "float16"]


class Precision(Config):
    """Which number types a training step keeps, computes with and gives out.

    Softmax, norms, rotary tables and losses are made in float32 whatever these say.

    Arguments:
        parameters: the type of the weights that are kept and updated, and of the optimizer's memory
            of them. Updates are small against weights: bfloat16, with 8 bits, loses most of them.
            Those that are not trained stay in the type they have.
        compute: the type that weights are cast to for a forward and backward pass.
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
    """A tree with its arrays of floating types in another; those of other types stay."""
    kind = jnp.dtype(dtype)
    return jax.tree.map(
        lambda x: x.astype(kind) if eqx.is_inexact_array(x) and x.dtype != kind else x, tree
    )
