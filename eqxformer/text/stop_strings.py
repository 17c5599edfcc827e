"""Stopping at a text, wherever the boundaries of tokens lie in it."""

from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8

from eqxformer.generation.following import Memory
from eqxformer.generation.processors import Seen
from eqxformer.generation.stops import Stop
from eqxformer.text._automaton import Search, automaton, strings_given
from eqxformer.text.token_bytes import token_bytes, with_special

_STATES = 64  # automata are made a multiple of it large, so that most share a compiled program


class StopStrings(Stop):
    """Finished when a row's new text contains one of these strings.

    One may begin or end inside of a token and run over several; a token that holds it in its
    middle counts too. The prompt does not: a string must stand in the new text as a whole. Each row
    remembers the state of an automaton (Aho and Corasick 1975), which reads the bytes of each new
    token. Other strings compile nothing anew, unless they are much longer.

    The text is that of `token_bytes`: a word's space counts, also for the first new token. Special
    tokens are no text, but with a tokenizer, one that a string is or contains counts where it
    stands. `text_before` cuts a text where this stops, and `TextPieces` does so while it is made.

    Arguments:
        strings: a string or several.
        tokenizer: a `tokenizers.Tokenizer`, or the bytes of each id as `token_bytes` gives them.
        spaces: how many spaces at the beginning do not count: 1 for a whole text, such as that of
            an encoder-decoder, under a tokenizer whose `decode` leaves out that of a first word.

    Raises `ValueError` for no string, an empty one, or a negative `spaces`.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> stop = ef.StopStrings("###", (b"a#", b"##b", None)).begin(rows=2)
        >>> seen = ef.Seen.start(jnp.array([[0], [0]]), None, new=2)
        >>> for tokens in (jnp.array([0, 1]), jnp.array([1, 0])):
        ...     seen, stop = seen.add(tokens), stop.after(tokens)
        ...     print(stop.reached(seen))
        [False False]
        [ True False]
    """

    following: Int[Array, "states bytes"]
    first: Int[Array, ""]
    ends: Bool[Array, " states"]
    letters: UInt8[Array, " letters"]
    borders: Int[Array, " borders"]
    memory: Memory | None

    def __init__(self, strings: str | Iterable[str], tokenizer: Any, *, spaces: int = 0):
        given = strings_given(strings, "StopStrings")
        if not given:
            raise ValueError("`StopStrings` needs a string to stop at; got none.")
        if spaces < 0:
            raise ValueError(f"`spaces` must not be negative; got {spaces}.")
        if isinstance(tokenizer, Sequence):
            parts = tokenizer
        else:
            parts = with_special(token_bytes(tokenizer), tokenizer, given)
        found = automaton(string.encode() for string in given)
        table, first = _without_spaces(found.following, spaces)
        more = -len(table) % _STATES
        self.following = jnp.asarray(np.pad(table, ((0, more), (0, 0))))
        self.first = jnp.asarray(first, jnp.int32)
        self.ends = jnp.asarray(np.pad(found.found > 0, (0, len(table) + more - len(found.found))))
        # After the last id comes one without bytes, which stands for all that have none.
        sizes = [0, *(len(part or b"") for part in parts), 0]
        self.borders = jnp.asarray(np.cumsum(sizes, dtype=np.int32))
        joined = b"".join(part or b"" for part in parts) or b"\0"
        self.letters = jnp.asarray(np.frombuffer(joined, np.uint8))
        self.memory = None

    def begin(self, rows: int) -> "StopStrings":
        return self._with(jnp.broadcast_to(self.first, (rows,)), jnp.zeros(rows, bool))

    def after(self, tokens: Int[Array, " rows"]) -> "StopStrings":
        before, _ = self._remembered()
        none = self.borders.shape[0] - 2
        ids = jnp.where((tokens >= 0) & (tokens < none), tokens, none)
        last = self.borders[ids + 1]

        def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            place, state, found = carry
            within = place < last
            letter = self.letters[jnp.minimum(place, self.letters.shape[0] - 1)]
            state = jnp.where(within, self.following[state, letter.astype(jnp.int32)], state)
            return place + 1, state, found | (within & self.ends[state])

        begin = (self.borders[ids], before, jnp.zeros(tokens.shape, bool))
        _, state, found = jax.lax.while_loop(lambda carry: (carry[0] < last).any(), step, begin)
        return self._with(state, found)

    def reached(self, seen: Seen) -> Bool[Array, " rows"]:
        return self._remembered()[1]

    def _remembered(self) -> tuple[Array, Array]:
        if self.memory is None:
            raise ValueError(
                "`StopStrings` follows rows from their first new token: stop.begin(rows), then "
                "stop.after(tokens) for each."
            )
        return self.memory.value

    def _with(self, state: Array, found: Array) -> "StopStrings":
        memory = Memory((state, found))
        return eqx.tree_at(lambda s: s.memory, self, memory, is_leaf=lambda x: x is None)


def _without_spaces(
    following: Int[np.ndarray, "states bytes"], count: int
) -> tuple[Int[np.ndarray, "more bytes"], int]:
    """The automaton with states in front that pass over so many spaces, and the first of them."""
    first = 0
    for _ in range(count):
        row = following[:1].copy()
        row[0, ord(" ")] = first
        first, following = len(following), np.concatenate([following, row])
    return following, first


def text_before(text: str, strings: str | Iterable[str]) -> str:
    """The text before the string of these that is complete first; all of it if there is none.

    Of two that end at the same place, it is the longer one. So the cut does not depend on how a
    text was split into tokens or pieces.

    Raises `ValueError` for an empty string.

    Example:
        >>> import eqxformer as ef
        >>> ef.text_before("a pear\\n\\nQ: and", ("\\n\\n", "Q:"))
        'a pear'
    """
    data = text.encode()
    search = Search([s.encode() for s in strings_given(strings, "text_before")])
    found = search.feed(data)
    return text if found is None else data[: found[0] - found[1]].decode()
