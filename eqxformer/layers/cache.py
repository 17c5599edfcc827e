"""Keys and values kept from earlier calls, so that a new token costs one step.

A cache has a fixed number of slots and counts, per row, the tokens written. Padding is never
written: the tokens of a row lie without gaps, whichever side its padding was on. `FullCache` keeps
everything, `RingCache` the last tokens of a window; `SourceCache` holds what cross-attention looks
at, computed once.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, DTypeLike, Float, Int


class Seen(eqx.Module):
    """Keys and values to look at, and the place of each in its row; place -1 is an empty slot.

    Rows that share their keys have them once, along an axis of the size 1, and places of their own.
    """

    keys: Float[Array, "*#batch kv_heads slots head_dim"]
    values: Float[Array, "*#batch kv_heads slots value_dim"]
    places: Int[Array, "*#batch slots"]


class SourceCache(eqx.Module):
    """The keys and values of a source, which cross-attention computes once for all steps.

    Arguments:
        keys, values: `*batch kv_heads keys head_dim`, of the source's tokens.

    Example:
        >>> import equinox as eqx, eqxformer as ef, jax, jax.numpy as jnp
        >>> def remembered(source, key):
        ...     return ef.Attention(8, heads=2, key=key).remember(source)
        >>> eqx.filter_eval_shape(remembered, jnp.ones((1, 5, 8)), jax.random.key(0)).keys.shape
        (1, 2, 5, 4)
    """

    keys: Float[Array, "*batch kv_heads keys head_dim"]
    values: Float[Array, "*batch kv_heads keys value_dim"]


class Cache(eqx.Module):
    """What self-attention remembers between calls.

    One of your own defines `places`, `extend` and `poison`, and for speculative decoding `emptied`
    and `back_to`.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> nothing = jnp.zeros((1, 2, 4, 8))  # batch, kv_heads, slots, head_dim
        >>> cache = ef.FullCache(nothing, nothing, length=jnp.array([3]))
        >>> isinstance(cache, ef.Cache), cache.places(2, None).tolist()
        (True, [[3, 4]])
    """

    @abc.abstractmethod
    def places(
        self, seq: int, valid: Bool[Array, "*#batch seq"] | None
    ) -> Int[Array, "*batch seq"]:
        """The place in its row of each of the next `seq` tokens; padding is at the next token's."""

    @abc.abstractmethod
    def extend(
        self,
        keys: Float[Array, "*batch kv_heads seq head_dim"],
        values: Float[Array, "*batch kv_heads seq value_dim"],
        valid: Bool[Array, "*#batch seq"] | None,
    ) -> "tuple[Cache, Seen]":
        """The cache with these tokens added, and all that their queries may look at."""

    @abc.abstractmethod
    def poison(self, y: Float[Array, "*batch seq dim"]) -> Float[Array, "*batch seq dim"]:
        """`y`, but NaN in rows whose tokens no longer fit."""

    def emptied(self, spare: int) -> "Cache":
        """A cache like this one without tokens, which can go back by `spare` of them."""
        raise NotImplementedError(f"{type(self).__name__} must define `emptied` to go back.")

    def back_to(self, length: Int[Array, "*#batch"]) -> "Cache":
        """The cache with at most the first `length` tokens of each row, the newest taken back."""
        raise NotImplementedError(f"{type(self).__name__} must define `back_to` to go back.")


class FullCache(Cache):
    """Every token up to a capacity: token `i` of a row lies in slot `i`.

        slots   0    1    2    3    4
        row 0   It   is   so   ·    ·     length 3
        row 1   Yes  ·    ·    ·    ·     length 1

    Writing past the capacity is a `ValueError` when called eagerly; under `jit` the outputs of
    that row are NaN from then on. The last slot is never overwritten.

    Arguments:
        keys, values: `*batch kv_heads slots head_dim`, zero where nothing is written.
        length: how many tokens each row has.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> nothing, new = jnp.zeros((1, 2, 5, 8)), jnp.ones((1, 2, 3, 8))
        >>> cache, seen = ef.FullCache(nothing, nothing, jnp.array([0])).extend(new, new, None)
        >>> cache.length, seen.places.tolist()
        (Array([3], dtype=int32), [[0, 1, 2, -1, -1]])
    """

    keys: Float[Array, "*batch kv_heads slots head_dim"]
    values: Float[Array, "*batch kv_heads slots value_dim"]
    length: Int[Array, "*batch"]

    def places(
        self, seq: int, valid: Bool[Array, "*#batch seq"] | None
    ) -> Int[Array, "*batch seq"]:
        return _next_places(self.length, seq, valid)

    def extend(
        self,
        keys: Float[Array, "*batch kv_heads seq head_dim"],
        values: Float[Array, "*batch kv_heads seq value_dim"],
        valid: Bool[Array, "*#batch seq"] | None,
    ) -> tuple["FullCache", Seen]:
        slots = self.keys.shape[-2]
        length = self.length + _count(keys.shape[-2], valid, self.length)
        _check_room(length, slots)
        places = self.places(keys.shape[-2], valid)
        targets = places if valid is None else jnp.where(valid, places, slots)
        new = FullCache(_put(self.keys, keys, targets), _put(self.values, values, targets), length)
        slot = jnp.broadcast_to(jnp.arange(slots, dtype=length.dtype), (*length.shape, slots))
        return new, Seen(new.keys, new.values, jnp.where(slot < length[..., None], slot, -1))

    def poison(self, y: Float[Array, "*batch seq dim"]) -> Float[Array, "*batch seq dim"]:
        return jnp.where((self.length > self.keys.shape[-2])[..., None, None], jnp.nan, y)

    def emptied(self, spare: int) -> "FullCache":
        return FullCache(*(jnp.zeros_like(a) for a in (self.keys, self.values, self.length)))

    def back_to(self, length: Int[Array, "*#batch"]) -> "FullCache":
        length = jnp.minimum(self.length, jnp.broadcast_to(length, self.length.shape))
        return FullCache(self.keys, self.values, length)


class RingCache(Cache):
    """The last `slots` tokens, for attention through a window: token `i` lies in slot `i % slots`.

    slots   0    1   2
    row 0   you  me  sing       "If me sing you", length 4: `you` has taken the place of `If`

    What was overwritten is gone, so going back needs `spare` slots beside those of the window. They
    count from the most tokens that a row has had. Going back further at once is a `ValueError` when
    called eagerly, and NaN under `jit`; of several steps back, which together go too far, nobody
    keeps count.

    Arguments:
        keys, values: `*batch kv_heads slots head_dim`.
        length: how many tokens each row has had.
        spare: by how many tokens it can go back.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> nothing, new = jnp.zeros((1, 1, 3, 1)), jnp.array([[[[0.0], [1.0], [2.0], [3.0]]]])
        >>> cache, _ = ef.RingCache(nothing, nothing, jnp.array([0])).extend(new, new, None)
        >>> cache.keys.ravel().tolist(), cache.length
        ([3.0, 1.0, 2.0], Array([4], dtype=int32))
    """

    keys: Float[Array, "*batch kv_heads slots head_dim"]
    values: Float[Array, "*batch kv_heads slots value_dim"]
    length: Int[Array, "*batch"]
    spare: int = eqx.field(static=True, default=0)

    def places(
        self, seq: int, valid: Bool[Array, "*#batch seq"] | None
    ) -> Int[Array, "*batch seq"]:
        return _next_places(self.length, seq, valid)

    def extend(
        self,
        keys: Float[Array, "*batch kv_heads seq head_dim"],
        values: Float[Array, "*batch kv_heads seq value_dim"],
        valid: Bool[Array, "*#batch seq"] | None,
    ) -> tuple["RingCache", Seen]:
        slots, seq = self.keys.shape[-2], keys.shape[-2]
        length = self.length + _count(seq, valid, self.length)
        places = self.places(seq, valid)
        real = jnp.ones_like(places, bool) if valid is None else valid
        last = real & (places >= length[..., None] - slots)
        targets = jnp.where(last, places % slots, slots)
        new = _put(self.keys, keys, targets), _put(self.values, values, targets)
        new = RingCache(*new, length, self.spare)
        if seq == 1:
            return new, Seen(new.keys, new.values, slot_places(length, slots))
        # Several queries: the first of them still see tokens that the last of them overwrite.
        return new, Seen(
            jnp.concatenate([self.keys, keys.astype(self.keys.dtype)], axis=-2),
            jnp.concatenate([self.values, values.astype(self.values.dtype)], axis=-2),
            jnp.concatenate(
                [slot_places(self.length, slots), jnp.where(real, places, -1)], axis=-1
            ),
        )

    def poison(self, y: Float[Array, "*batch seq dim"]) -> Float[Array, "*batch seq dim"]:
        return jnp.where((self.length < 0)[..., None, None], jnp.nan, y) if self.spare else y

    def emptied(self, spare: int) -> "RingCache":
        slots = self.keys.shape[-2] - self.spare + spare

        def zeros(a: Array) -> Array:
            return jnp.zeros((*a.shape[:-2], slots, a.shape[-1]), a.dtype)

        return RingCache(zeros(self.keys), zeros(self.values), jnp.zeros_like(self.length), spare)

    def back_to(self, length: Int[Array, "*#batch"]) -> "RingCache":
        length = jnp.minimum(self.length, jnp.broadcast_to(length, self.length.shape))
        taken = self.length - length
        _check_spare(taken, self.spare)
        length = jnp.where(taken > self.spare, jnp.iinfo(length.dtype).min // 2, length)
        return RingCache(self.keys, self.values, length, self.spare)


def empty_cache(
    batch: tuple[int, ...],
    *,
    kv_heads: int,
    slots: int,
    head_dim: int,
    value_dim: int,
    window: int | None,
    dtype: DTypeLike,
) -> Cache:
    """An empty cache for `slots` tokens, or for a `window` of them if that is smaller."""
    if slots < 1:
        raise ValueError(f"`slots` must be positive; got {slots}.")
    ring = window is not None and window < slots
    slots = window if ring else slots  # pyright: ignore[reportAssignmentType]
    keys = jnp.zeros((*batch, kv_heads, slots, head_dim), dtype)
    values = jnp.zeros((*batch, kv_heads, slots, value_dim), dtype)
    return (RingCache if ring else FullCache)(keys, values, jnp.zeros(batch, jnp.int32))


def slot_places(length: Int[Array, "*batch"], slots: int) -> Int[Array, "*batch slots"]:
    """The place of the token in each slot: the last of `length` that belongs there, or -1."""
    slot = jnp.arange(slots, dtype=length.dtype)
    newest = jnp.broadcast_to(length[..., None] - 1, (*length.shape, slots))
    place = newest - (newest - jnp.broadcast_to(slot, newest.shape)) % slots
    return jnp.where((place >= 0) & (newest >= 0), place, -1)


def _next_places(
    length: Int[Array, "*batch"], seq: int, valid: Bool[Array, "*#batch seq"] | None
) -> Int[Array, "*batch seq"]:
    full = (*length.shape, seq)
    if valid is None:
        before = jnp.broadcast_to(jnp.arange(seq, dtype=length.dtype), full)
    else:
        before = jnp.cumsum(valid, axis=-1, dtype=length.dtype) - valid.astype(length.dtype)
    return jnp.broadcast_to(length[..., None], full) + jnp.broadcast_to(before, full)


def _count(
    seq: int, valid: Bool[Array, "*#batch seq"] | None, length: Int[Array, "*batch"]
) -> Int[Array, "*batch"]:
    if valid is None:
        return jnp.full_like(length, seq)
    return jnp.broadcast_to(valid.sum(-1, dtype=length.dtype), length.shape)


def _check_room(length: Int[Array, "*batch"], slots: int) -> None:
    if not isinstance(length, Tracer) and length.size and int(length.max()) > slots:
        raise ValueError(
            f"The cache has {slots} slots and would have to hold {int(length.max())} tokens; "
            "make it with a larger `slots`."
        )


def _check_spare(taken: Int[Array, "*batch"], spare: int) -> None:
    if isinstance(taken, Tracer):
        impossible = spare == 0
    else:
        impossible = taken.size and int(taken.max()) > spare
    if impossible:
        raise ValueError(
            f"A window's cache with spare={spare} can go back by {spare} tokens; make it with "
            "`emptied` and a larger `spare`."
        )


def _put(
    slots: Float[Array, "*batch kv_heads slots size"],
    new: Float[Array, "*batch kv_heads seq size"],
    targets: Int[Array, "*batch seq"],
) -> Float[Array, "*batch kv_heads slots size"]:
    """`slots` with `new` written at `targets`; a target past the end is not written."""
    batch = slots.shape[:-3]
    rows = int(np.prod(batch, dtype=int))
    flat = slots.reshape(rows, *slots.shape[-3:])
    new = jnp.swapaxes(new.astype(slots.dtype), -3, -2)  # the indexed axes come first in a scatter
    new = jnp.broadcast_to(new, (*batch, *new.shape[-3:])).reshape(rows, *new.shape[-3:])
    seq = targets.shape[-1]
    where = jnp.broadcast_to(targets, (*batch, seq)).reshape(rows, seq)
    row = jnp.broadcast_to(jnp.arange(rows)[:, None], where.shape)
    return flat.at[row, :, where].set(new, mode="drop").reshape(slots.shape)
