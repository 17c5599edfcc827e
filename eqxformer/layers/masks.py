"""Masks as descriptions: who may look at whom, written down as a value, not as an array.

A description becomes an array only where a kernel needs one. `a & b` allows what both allow.
Every mask draws itself: rows are queries, columns are keys, a full square is an allowed look.

    >>> import eqxformer as ef
    >>> print(ef.Causal().draw(4))
    ■ · · ·
    ■ ■ · ·
    ■ ■ ■ ·
    ■ ■ ■ ■
"""

import abc
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int


class Mask(eqx.Module):
    """A description of which keys each query may look at.

    `ordered` says whether the description fixes what happens to keys *ahead* of a query. A decoder
    adds `Causal()` to a mask that does not, so that padding alone never opens up the future.
    `own_axes` is how many axes its arrays have behind those of the batch, which can then be
    compared with a call's; None leaves that to chance.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> class EverySecond(ef.Mask):
        ...     def allows(self, queries, keys):
        ...         return (keys[..., None, None, :] - queries[..., None, :, None]) % 2 == 0
        >>> print((EverySecond() & ef.Causal()).draw(3))
        ■ · ·
        · ■ ·
        ■ · ■
    """

    ordered: ClassVar[bool] = False
    own_axes: ClassVar[int | None] = None
    of_array: ClassVar[str] = (  # told to those who pass an array where a mask is wanted
        "`ef.Padding(valid)` and `ef.Explicit(allowed)` make masks of arrays"
    )

    @abc.abstractmethod
    def allows(
        self, queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
    ) -> Bool[Array, "*#batch #heads seq keys"]:
        """Whether each query may look at each key, given their places in the sequence.

        Places count the tokens of a row from 0; a cache gives the place of what is in each slot.
        """

    def __and__(self, other: "Mask") -> "Mask":
        return Both(parts=(*parts(self), *parts(other)))

    def draw(self, seq: int, keys: int | None = None) -> str:
        """The mask as text for `seq` queries and as many keys, or `keys` of them."""
        keys = seq if keys is None else keys
        allowed = np.asarray(self.allows(jnp.arange(seq), jnp.arange(keys)))
        rows = np.broadcast_to(allowed, (*allowed.shape[:-2], seq, keys)).reshape(-1, seq, keys)
        squares = ("\n".join(" ".join("·■"[int(k)] for k in row) for row in each) for each in rows)
        return "\n\n".join(squares)


Kind = TypeVar("Kind", bound=Mask)


class Both(Mask):
    """What all of several descriptions allow; made by `a & b`."""

    parts: tuple[Mask, ...]

    def allows(
        self, queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
    ) -> Bool[Array, "*#batch #heads seq keys"]:
        allowed = self.parts[0].allows(queries, keys)
        for part in self.parts[1:]:
            allowed = _and(allowed, part.allows(queries, keys))
        return allowed


class Full(Mask):
    """Everyone sees everyone, also ahead: what makes a decoder bidirectional.

    Example:
        >>> import eqxformer as ef
        >>> print(ef.Full().draw(3))
        ■ ■ ■
        ■ ■ ■
        ■ ■ ■
    """

    ordered: ClassVar[bool] = True

    def allows(
        self, queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
    ) -> Bool[Array, "*#batch #heads seq keys"]:
        query, key = _grid(queries, keys)
        return (query == query) & (key == key)


class Causal(Mask):
    """A query sees itself and what came before: `key <= query`.

    Example:
        >>> import eqxformer as ef
        >>> print(ef.Causal().draw(3))
        ■ · ·
        ■ ■ ·
        ■ ■ ■
    """

    ordered: ClassVar[bool] = True

    def allows(
        self, queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
    ) -> Bool[Array, "*#batch #heads seq keys"]:
        query, key = _grid(queries, keys)
        return key <= query


class Window(Mask):
    """A query sees `left` keys before it and `right` after it, and itself.

    `Window(1, 1)`, symmetric:      `Window(1, 0)`, with `Causal()` or without:

        ■ ■ · ·                         ■ · · ·
        ■ ■ ■ ·                         ■ ■ · ·
        · ■ ■ ■                         · ■ ■ ·
        · · ■ ■                         · · ■ ■

    Arguments:
        left, right: how many keys before and after a query, 0 or more.

    Example:
        >>> import eqxformer as ef
        >>> print((ef.Window(2, 2) & ef.Causal()).draw(4))
        ■ · · ·
        ■ ■ · ·
        ■ ■ ■ ·
        · ■ ■ ■
    """

    left: int = eqx.field(static=True)
    right: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if self.left < 0 or self.right < 0:
            raise ValueError(
                f"A window counts keys on either side; got left={self.left}, right={self.right}."
            )

    def allows(
        self, queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
    ) -> Bool[Array, "*#batch #heads seq keys"]:
        query, key = _grid(queries, keys)
        return (key >= query - self.left) & (key <= query + self.right)


class Padding(Mask):
    """Keys that are padding are seen by nobody; `valid` is true for real tokens, on either side.

    Arguments:
        valid: true for real tokens, `*batch keys`.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> print(ef.Padding(jnp.array([False, True, True])).draw(3))
        · ■ ■
        · ■ ■
        · ■ ■
    """

    own_axes: ClassVar[int | None] = 1
    valid: Bool[Array, "*#batch keys"]

    def __check_init__(self) -> None:
        _refuse_numbers("Padding.valid", self.valid)

    def allows(
        self, queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
    ) -> Bool[Array, "*#batch #heads seq keys"]:
        _same_length("Padding.valid", self.valid.shape[-1], "keys", keys.shape[-1])
        query, _ = _grid(queries, keys)
        return _and(self.valid[..., None, None, :], query == query)


class Segments(Mask):
    """Tokens see only their own segment: `query_ids == key_ids`, for packed sequences.

    `key_ids` are the same ids unless they are given.

    Arguments:
        query_ids, key_ids: the segment of each token, `*batch seq` and `*batch keys`.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> print(ef.Segments(jnp.array([0, 0, 1])).draw(3))
        ■ ■ ·
        ■ ■ ·
        · · ■
    """

    own_axes: ClassVar[int | None] = 1
    query_ids: Int[Array, "*#batch seq"]
    key_ids: Int[Array, "*#batch keys"]

    def __init__(
        self,
        query_ids: Int[Array, "*#batch seq"],
        key_ids: Int[Array, "*#batch keys"] | None = None,
    ):
        self.query_ids = query_ids
        self.key_ids = query_ids if key_ids is None else key_ids

    def allows(
        self, queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
    ) -> Bool[Array, "*#batch #heads seq keys"]:
        _same_length("Segments.query_ids", self.query_ids.shape[-1], "queries", queries.shape[-1])
        _same_length("Segments.key_ids", self.key_ids.shape[-1], "keys", keys.shape[-1])
        query, key = _grid(self.query_ids, self.key_ids)
        return query == key


class Prefix(Mask):
    """Prefix-LM: the first `length` tokens see each other, the rest is causal (Raffel et al. 2020).

    `length` counts places from the start of a row: with padding on the left, count the padding too,
    except with a cache, which holds no padding and counts real tokens alone.

    Example:
        >>> import eqxformer as ef
        >>> print(ef.Prefix(2).draw(4))
        ■ ■ · ·
        ■ ■ · ·
        ■ ■ ■ ·
        ■ ■ ■ ■
    """

    ordered: ClassVar[bool] = True
    own_axes: ClassVar[int | None] = 0
    length: Int[Array, "*#batch"]

    def __init__(self, length: Int[Array, "*#batch"] | int):
        self.length = jnp.asarray(length)

    def allows(
        self, queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
    ) -> Bool[Array, "*#batch #heads seq keys"]:
        query, key = _grid(queries, keys)
        length = self.length[..., None, None, None]
        shape = jnp.broadcast_shapes(query.shape, key.shape, length.shape)
        query, key, length = (jnp.broadcast_to(a, shape) for a in (query, key, length))
        return (key <= query) | (key < length)


class Explicit(Mask):
    """Any boolean array: `allowed[query, key]`, the same for all heads.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> print(ef.Explicit(jnp.array([[True, False], [False, True]])).draw(2))
        ■ ·
        · ■
    """

    own_axes: ClassVar[int | None] = 2
    allowed: Bool[Array, "*#batch seq keys"]

    def __check_init__(self) -> None:
        _refuse_numbers("Explicit.allowed", self.allowed)

    def allows(
        self, queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
    ) -> Bool[Array, "*#batch #heads seq keys"]:
        _same_length("Explicit.allowed", self.allowed.shape[-2], "queries", queries.shape[-1])
        _same_length("Explicit.allowed", self.allowed.shape[-1], "keys", keys.shape[-1])
        return self.allowed[..., None, :, :]


class PerHead(Mask):
    """Any boolean array with an axis of heads: `allowed[head, query, key]`.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> allowed = jnp.array([[[True, False]], [[True, True]]])  # two heads, one query, two keys
        >>> ef.PerHead(allowed).allows(jnp.arange(1), jnp.arange(2)).shape
        (2, 1, 2)
    """

    own_axes: ClassVar[int | None] = 3
    allowed: Bool[Array, "*#batch heads seq keys"]

    def __check_init__(self) -> None:
        _refuse_numbers("PerHead.allowed", self.allowed)

    def allows(
        self, queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
    ) -> Bool[Array, "*#batch #heads seq keys"]:
        _same_length("PerHead.allowed", self.allowed.shape[-2], "queries", queries.shape[-1])
        _same_length("PerHead.allowed", self.allowed.shape[-1], "keys", keys.shape[-1])
        return self.allowed


def parts(mask: Mask | None) -> tuple[Mask, ...]:
    """The descriptions that `&` has joined; none for no mask."""
    if mask is None:
        return ()
    return mask.parts if isinstance(mask, Both) else (mask,)


def of_kind(mask: Mask | None, kind: type[Kind]) -> tuple[Kind, ...]:
    """The descriptions of one kind, but for those of a subclass with an `allows` of its own.

    Example:
        >>> import eqxformer as ef
        >>> from eqxformer.layers.masks import of_kind
        >>> class Strict(ef.Causal):
        ...     def allows(self, queries, keys):
        ...         return keys[..., None, None, :] < queries[..., None, :, None]
        >>> of_kind(Strict() & ef.Causal(), ef.Causal)
        (Causal(),)
    """
    found = (part for part in parts(mask) if isinstance(part, kind))
    return tuple(part for part in found if type(part).allows is kind.allows)


def join(masks: tuple[Mask, ...]) -> Mask | None:
    """All of these descriptions as one; `None`, which allows everything, for no description."""
    return masks[0] if len(masks) == 1 else Both(parts=masks) if masks else None


def ordered(mask: Mask | None, otherwise: Mask) -> Mask:
    """`mask`, with `otherwise` added where it does not say who may look ahead."""
    found = parts(mask)
    return mask if mask is not None and any(p.ordered for p in found) else join((otherwise, *found))  # pyright: ignore[reportReturnType]


def valid_keys(mask: Mask | None) -> Bool[Array, "*batch keys"] | None:
    """Which keys are real tokens, as far as paddings say; `None` when no padding is described.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> ef.valid_keys(ef.Causal() & ef.Padding(jnp.array([False, True])))
        Array([False,  True], dtype=bool)
    """
    valid = None
    for part in parts(mask):
        if isinstance(part, Padding):
            valid = part.valid if valid is None else _and(valid, part.valid)
    return valid


def _grid(
    queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
) -> tuple[Int[Array, "*full 1 seq keys"], Int[Array, "*full 1 seq keys"]]:
    """Queries down, keys across, over their common leading axes and an axis of heads."""
    shape = jnp.broadcast_shapes(queries.shape[:-1], keys.shape[:-1])
    full = (*shape, 1, queries.shape[-1], keys.shape[-1])
    return (
        jnp.broadcast_to(queries[..., None, :, None], full),
        jnp.broadcast_to(keys[..., None, None, :], full),
    )


def _and(a: Bool[Array, "..."], b: Bool[Array, "..."]) -> Bool[Array, "..."]:
    shape = jnp.broadcast_shapes(a.shape, b.shape)
    return jnp.broadcast_to(a, shape) & jnp.broadcast_to(b, shape)


def _same_length(name: str, got: int, of: str, expected: int) -> None:
    if got != expected:
        raise ValueError(f"`{name}` describes {got} {of}; this call has {expected}.")


def _refuse_numbers(name: str, array: Any) -> None:
    """Raises `ValueError` for numbers to be added to scores, in which a zero hides nothing."""
    kind = getattr(array, "dtype", None)
    if kind is not None and jnp.issubdtype(kind, jnp.floating):
        raise ValueError(
            f"`{name}` must be boolean, true for what may be seen; got {kind}. Numbers to be added "
            "to the scores go into `ExplicitBias`; of those that are zero or minus infinity, "
            "`numbers == 0` makes a mask."
        )
