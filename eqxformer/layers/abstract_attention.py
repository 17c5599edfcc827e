"""What a block asks of its self-attention, whatever is inside."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

from eqxformer.config import Config
from eqxformer.layers.biases import PositionBias
from eqxformer.layers.cache import Cache
from eqxformer.layers.masks import Mask


class AbstractAttention(eqx.Module):
    """What looks from token to token. One of your own subclasses this and its `Config`.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> class Mean(ef.AbstractAttention):
        ...     def run(self, x, *, mask=None, positions=None, bias=None, cache=None, key=None):
        ...         return jnp.broadcast_to(x.mean(-2, keepdims=True), x.shape), cache
        ...     def init_cache(self, batch, slots, dtype=jnp.float32):
        ...         raise NotImplementedError("A mean over earlier calls would need a cache.")
        >>> Mean().run(jnp.array([[1.0, 1.0], [3.0, 5.0]]))[0].tolist()
        [[2.0, 3.0], [2.0, 3.0]]
    """

    class Config(Config):
        """The hyperparameters of a kind of attention; all kinds have heads of queries."""

        heads: int

        @property
        def reads_positions(self) -> bool:
            """Whether places matter beside the mask; one of your own that needs none says False."""
            return True

        def build(self, dim: int, *, key: PRNGKeyArray) -> "AbstractAttention":
            """The attention of a model of width `dim`."""
            raise NotImplementedError(f"{self.type_name} must define `build`.")

    @abc.abstractmethod
    def run(
        self,
        x: Float[Array, "*batch seq dim"],
        *,
        mask: Mask | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        bias: PositionBias | None = None,
        cache: Cache | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*batch seq dim"], Cache | None]:
        """Self-attention, and the cache with `x` added, if there is one.

        Arguments:
            mask: who may look at whom; None allows everything.
            positions: for rotary positions; counted from 0, or from what the cache holds, if None.
            bias: a bias of the scores that blocks share, beside the part's own.
            cache: what earlier calls have left; padding described by `mask` is not written to it.
            key: switches dropout on.
        """

    @abc.abstractmethod
    def init_cache(
        self, batch: tuple[int, ...], slots: int, dtype: DTypeLike = jnp.float32
    ) -> Cache:
        """An empty cache for `slots` tokens per row."""

    def axis_counts(self) -> dict[str, int]:
        """How many heads there are of each kind, which devices share out whole."""
        config = getattr(self, "config", None)
        if not isinstance(config, AbstractAttention.Config):
            return {}
        kv_heads = getattr(config, "kv_heads", None)
        return {"heads": config.heads, "kv_heads": kv_heads or config.heads}
