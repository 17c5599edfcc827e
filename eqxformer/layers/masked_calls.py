"""What a mask means to one call: whether it fits, what is padding, what a cache makes of it."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from eqxformer.layers.masks import (
    Explicit,
    Full,
    Mask,
    Padding,
    PerHead,
    Segments,
    join,
    of_kind,
    parts,
    valid_keys,
)

ARRAYS = (Padding, Segments, Explicit, PerHead)  # what describes the keys of one call


def check_batch(mask: Mask | None, batch: tuple[int, ...]) -> None:
    """Raises `ValueError` for a mask of another batch than the tokens of a call."""
    for part in parts(mask):
        if part.own_axes is None:
            continue
        for field in dataclasses.fields(part):
            shape = getattr(part, field.name).shape
            own = shape[: len(shape) - part.own_axes]
            pairs = zip(own[::-1], batch[::-1], strict=False)
            if len(own) > len(batch) or any(a not in (1, b) for a, b in pairs):
                raise ValueError(
                    f"`{type(part).__name__}.{field.name}` is for a batch of {own}; "
                    f"this call has {batch}."
                )


def blank_padding(
    keys: Float[Array, "*batch kv_heads keys head_dim"],
    values: Float[Array, "*batch kv_heads keys value_dim"],
    mask: Mask | None,
) -> tuple[
    Float[Array, "*batch kv_heads keys head_dim"], Float[Array, "*batch kv_heads keys value_dim"]
]:
    """Zeros in place of padding: a weight of zero does not remove a NaN, since 0 * NaN is NaN.

    Not of a subclass with an `allows` of its own, which may let some queries see what is padding.
    Raises `ValueError` for a mask of another batch.
    """
    check_batch(mask, keys.shape[:-3])
    valid = valid_keys(join(of_kind(mask, Padding)))
    if valid is None:
        return keys, values
    kept = jnp.broadcast_to(valid, (*keys.shape[:-3], keys.shape[-2]))[..., None, :, None]
    return jnp.where(kept, keys, 0), jnp.where(kept, values, 0)


def for_cache(mask: Mask | None) -> Mask | None:
    """`mask` for keys that lie in a cache: by places alone; padding is known to the cache itself.

    Raises `NotImplementedError` for descriptions that are arrays over the keys of one call.
    """
    kept = tuple(part for part in parts(mask) if not of_kind(part, Padding))
    for part in kept:
        if isinstance(part, ARRAYS):
            raise NotImplementedError(
                f"{type(part).__name__} describes the keys of one call, and a cache holds those of "
                "earlier calls too; with a cache use Causal, Window, Prefix, Full or Padding."
            )
    return join(kept)


def reads_places(mask: Mask | None) -> bool:
    """Whether it matters to a mask which places in their rows queries and keys have."""
    return any(not any(of_kind(part, kind) for kind in (Full, *ARRAYS)) for part in parts(mask))
