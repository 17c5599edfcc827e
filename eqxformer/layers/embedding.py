"""Tables looked up by id; an id outside the table is never clamped to a wrong row."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from eqxformer.config import Config, takes_options
from eqxformer.constraints import constrain
from eqxformer.layers.gather import rows_of
from eqxformer.layers.initializers import Initializer, Normal


class Embedding(eqx.Module):
    """A vector per token id: `weight[id]`.

    An id outside the vocabulary is a `ValueError` when called eagerly; under `jit`, where no value
    can be looked at, its vector is NaN, never that of another token.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> table = ef.Embedding(10, 4, key=jax.random.key(0))
        >>> table(jnp.array([[1, 2, 3]])).shape
        (1, 3, 4)
    """

    class Config(Config):
        """How the table starts."""

        init: Initializer = Normal(0.02)

        def build(self, vocab: int, dim: int, *, key: PRNGKeyArray) -> "Embedding":
            """A table of `vocab` rows of `dim` numbers."""
            return Embedding(vocab, dim, self, key=key)

    weight: Float[Array, "vocab dim"]

    @takes_options
    def __init__(self, vocab: int, dim: int, config: Config, *, key: PRNGKeyArray):
        self.weight = config.init(key, (vocab, dim))

    def __call__(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch dim"]:
        return lookup(constrain(self.weight, "vocab", "dim"), ids, what="token id")

    def attend(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch vocab"]:
        """The scores of every token, `x @ weight.T`: the table used as a tied output."""
        # Without a transpose, which XLA would make a copy of outside of a loop.
        return jnp.einsum("...d,vd->...v", x, self.weight)


def lookup(
    weight: Float[Array, "rows dim"], ids: Int[Array, "*batch"], *, what: str, first: int = 0
) -> Float[Array, "*batch dim"]:
    """`weight[ids]`; ids below `first` or past the end raise `ValueError`, or give NaN under `jit`.

    Arguments:
        what: what an id stands for, for the error.
        first: the row of the first valid id; what is reported is counted from there.
    """
    rows = weight.shape[0]
    if not isinstance(ids, Tracer):
        _check_ids(np.asarray(ids), first, rows, what)
    ids = ids.astype(np.promote_types(ids.dtype, np.int32))  # `rows` may not fit a smaller type
    known = jnp.where(ids < first, rows, ids)  # a negative index would count from the end
    return rows_of(weight, known, _filled)


def _filled(weight: Array, ids: Array) -> Array:
    return weight.at[ids].get(mode="fill", fill_value=jnp.nan)


def _check_ids(ids: np.ndarray, first: int, rows: int, what: str) -> None:
    wrong = ids[(ids < first) | (ids >= rows)]
    if wrong.size:
        raise ValueError(
            f"Every {what} must be at least 0 and below {rows - first}; got {wrong.flat[0] - first}"
            + (f" and {wrong.size - 1} more." if wrong.size > 1 else ".")
        )
