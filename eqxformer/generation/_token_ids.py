"""Token ids that a processor names, and phrases of several of them."""

from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from eqxformer.generation.processors import Seen


class TokenIds(eqx.Module):
    """Ids as an array, so that others compile nothing anew, and who names them."""

    array: Int[Array, "*any"]
    owner: str = eqx.field(static=True)

    def __init__(self, ids: Any, owner: str):
        numbers = np.asarray(ids, np.int32) if np.size(ids) else np.zeros(np.shape(ids), np.int32)
        if (numbers < 0).any():
            wrong = numbers[numbers < 0][0]
            raise ValueError(f"The ids of `{owner}` must not be negative; got {wrong}.")
        self.array = jax.device_put(numbers)
        self.owner = owner

    def check(self, vocab: int) -> None:
        """Raises `ValueError` for an id outside the vocabulary, where the ids can be seen."""
        if isinstance(self.array, Tracer):
            return
        wrong = np.asarray(self.array)
        wrong = wrong[wrong >= vocab]
        if wrong.size:
            raise ValueError(f"The ids of `{self.owner}` must be below {vocab}; got {wrong[0]}.")

    def guard(self, logits: Float[Array, "rows vocab"]) -> Float[Array, "rows vocab"]:
        """The logits; for an id outside of them, `ValueError`, or NaN under `jit`."""
        vocab = logits.shape[-1]
        self.check(vocab)
        return jnp.where((self.array >= vocab).any(), jnp.nan, logits)


class Phrases(eqx.Module):
    """Sequences of ids, the last one apart.

    (1, 2, 3) and (4,) are `before` [[1, 2], [0, 0]], of which 2 and 0 count, and `last` [3, 4].
    """

    before: TokenIds
    sizes: Int[Array, " phrases"]
    last: TokenIds

    def __init__(self, phrases: Iterable[Sequence[int]], owner: str):
        phrases = [tuple(phrase) for phrase in phrases]
        if not all(phrases):
            raise ValueError(f"Every phrase of `{owner}` must have at least one id; got ().")
        longest = max((len(phrase) - 1 for phrase in phrases), default=0)
        padded = [(0,) * (longest + 1 - len(phrase)) + phrase[:-1] for phrase in phrases]
        self.before = TokenIds(np.reshape(padded, (len(phrases), longest)), owner)
        self.sizes = jnp.asarray([len(phrase) - 1 for phrase in phrases], jnp.int32)
        self.last = TokenIds([phrase[-1] for phrase in phrases], owner)

    @property
    def single(self) -> bool:
        """Whether no phrase has more than one id, so that what was seen does not matter."""
        return self.before.array.shape[-1] == 0

    def reached(self, seen: Seen) -> Bool[Array, "rows phrases"]:
        """Whether a row ends with all of a phrase but its last id."""
        longest = self.before.array.shape[-1]
        newest, there = newest_tokens(seen, longest)
        same = (newest[:, None] == self.before.array[None]) & there[:, None]
        counts = jnp.arange(longest, dtype=jnp.int32)[None] >= longest - self.sizes[:, None]
        return (same | ~counts[None]).all(-1)


def some_ids(stop: int | Sequence[int], owner: str) -> TokenIds:
    """The ids that end a row; raises `ValueError` for none."""
    if not np.size(stop):
        raise ValueError(f"`{owner}` needs the ids that would end a row in `stop`; got none.")
    return TokenIds(np.atleast_1d(stop).tolist(), owner)


def newest_tokens(
    seen: Seen, count: int
) -> tuple[Int[Array, "rows count"], Bool[Array, "rows count"]]:
    """The last `count` tokens of each row, the newest at the end, and which of them are there."""
    places = seen.length[:, None] - count + jnp.arange(count, dtype=jnp.int32)[None]
    tokens = jnp.take_along_axis(seen.tokens, jnp.maximum(places, 0), axis=1)
    return tokens, places >= 0


def ban(
    logits: Float[Array, "rows vocab"],
    ids: Int[Array, "#rows ids"],
    where: Bool[Array, "#rows #ids"],
) -> Float[Array, "rows vocab"]:
    """The logits with `-inf` for these ids of each row; an id outside of them is left out."""
    rows, vocab = logits.shape
    ids = jnp.where(where & (ids >= 0), ids, vocab)
    ids = jnp.broadcast_to(ids, (rows, ids.shape[-1]))
    return logits.at[jnp.arange(rows)[:, None], ids].set(-jnp.inf, mode="drop")


def check_vocabulary(tree: Any, vocab: int) -> None:
    """Raises `ValueError` if a processor anywhere in `tree` names an id outside the vocabulary."""
    for node in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, TokenIds)):
        if isinstance(node, TokenIds):
            node.check(vocab)
