"""Stopping at a text, wherever the boundaries of tokens lie in it."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8

from eqxformer.generation.following import Memory
from eqxformer.generation.processors import Seen
from eqxformer.generation.stops import Stop
from eqxformer.text._automaton import Search, automaton, strings_given
from eqxformer.text.token_bytes import Place, Spelled, spelled, with_special

# Automata and their texts are made multiples of these large, so that most share a program.
_STATES, _LETTERS = 64, 4096


class _Read(NamedTuple):
    """What has been read of each row.

    Arguments:
        state: that of the automaton.
        found: whether the newest token has completed a string.
        first: whether there was no token of text.
        spaces: how many spaces are still passed over, at the beginning.
    """

    state: Int[Array, " rows"]
    found: Bool[Array, " rows"]
    first: Bool[Array, " rows"]
    spaces: Int[Array, " rows"]


class StopStrings(Stop):
    """Finished when a row's new text contains one of these strings.

    One may begin or end inside of a token and run over several; a token that holds it in its
    middle counts too. The prompt does not: a string must stand in the new text as a whole. Each row
    remembers the state of an automaton (Aho and Corasick 1975), which reads the bytes of each new
    token. Other strings compile nothing anew, unless they are much longer (or, rarely, special
    tokens for which a multiple of 4096 bytes has no more room).

    The text is that of `token_bytes`: a word's space counts, also for the first new token. Special
    tokens are no text, but with a tokenizer, one that a string is or contains counts where it
    stands. `text_before` cuts a text where this stops, and `TextPieces` does so while it is made.

    Arguments:
        strings: a string or several.
        tokenizer: a `tokenizers.Tokenizer`, or the bytes of each id as `token_bytes` gives them.
        place: where in a text the new tokens stand: `inside`, behind a prompt, or at its
            `beginning`, as those of an encoder-decoder, where the text is that of `decode`, which
            may leave out the space of a first word.

    Raises `ValueError` for no string, an empty one, another `place`, or bytes at the `beginning`,
    which only a tokenizer tells.

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
    ends: Bool[Array, " states"]
    letters: UInt8[Array, " letters"]
    spans: Int[Array, "places ids sides"]
    silent: Bool[Array, " ids"]
    spaces: Int[Array, ""]
    memory: Memory | None

    def __init__(self, strings: str | Iterable[str], tokenizer: Any, *, place: Place = "inside"):
        given = strings_given(strings, "StopStrings")
        if not given:
            raise ValueError("`StopStrings` needs a string to stop at; got none.")
        parts = _spelled(tokenizer, place, given)
        found = automaton(string.encode() for string in given)
        more = -len(found.following) % _STATES
        self.following = jnp.asarray(np.pad(found.following, ((0, more), (0, 0))))
        self.ends = jnp.asarray(np.pad(found.found > 0, (0, more)))
        letters, spans = _laid_out(parts)
        self.letters = jnp.asarray(np.pad(letters, (0, -len(letters) % _LETTERS)))
        self.spans = jnp.asarray(spans)
        # After the last id comes one without bytes, which stands for all that have none.
        self.silent = jnp.asarray(np.array([*(part is None for part in parts.inside), True]))
        self.spaces = jnp.asarray(parts.spaces, jnp.int32)
        self.memory = None

    def begin(self, rows: int) -> "StopStrings":
        spaces = jnp.broadcast_to(self.spaces, (rows,))
        none, first = jnp.zeros(rows, bool), jnp.ones(rows, bool)
        return self._with(_Read(jnp.zeros(rows, jnp.int32), none, first, spaces))

    def after(self, tokens: Int[Array, " rows"]) -> "StopStrings":
        before = self._remembered()
        none = self.silent.shape[0] - 1
        ids = jnp.where((tokens >= 0) & (tokens < none), tokens, none)
        silent, span = self.silent[ids], self.spans[before.first.astype(jnp.int32), ids]
        last = span[:, 1]

        def step(carry: tuple[Array, _Read]) -> tuple[Array, _Read]:
            place, (state, found, first, spaces) = carry
            letter = self.letters[jnp.minimum(place, self.letters.shape[0] - 1)]
            passed = ~silent & (spaces > 0) & (letter == ord(" "))  # over, as `decode` does
            reads = (place < last) & ~passed
            state = jnp.where(reads, self.following[state, letter.astype(jnp.int32)], state)
            found = found | (reads & self.ends[state])
            left = jnp.where(passed, spaces - 1, 0)
            spaces = jnp.where((place < last) & ~silent, left, spaces)
            return place + 1, _Read(state, found, first, spaces)

        begun = before._replace(found=jnp.zeros(tokens.shape, bool), first=before.first & silent)
        carry = (span[:, 0], begun)
        carry = jax.lax.while_loop(lambda carry: (carry[0] < last).any(), step, carry)
        return self._with(carry[1])

    def reached(self, seen: Seen) -> Bool[Array, " rows"]:
        return self._remembered().found

    def _remembered(self) -> "_Read":
        if self.memory is None:
            raise ValueError(
                "`StopStrings` follows rows from their first new token: stop.begin(rows), then "
                "stop.after(tokens) for each."
            )
        return self.memory.value

    def _with(self, read: "_Read") -> "StopStrings":
        return eqx.tree_at(lambda s: s.memory, self, Memory(read), is_leaf=lambda x: x is None)


def _spelled(tokenizer: Any, place: Place, strings: tuple[str, ...]) -> Spelled:
    """What ids add to a text, special tokens in these strings included."""
    if place not in get_args(Place):
        raise ValueError(f"`place` must be one of {', '.join(get_args(Place))}; got {place!r}.")
    if isinstance(tokenizer, Spelled):  # made once for many strings
        return tokenizer
    if not isinstance(tokenizer, Sequence):
        return with_special(spelled(tokenizer, place), tokenizer, strings)
    if place == "beginning":
        raise ValueError(
            "`place='beginning'` needs the tokenizer, since bytes do not tell what `decode` leaves "
            "out there; got the bytes of each id."
        )
    return Spelled(tokenizer, tokenizer)


def _laid_out(
    parts: Spelled,
) -> tuple[UInt8[np.ndarray, " letters"], Int[np.ndarray, "places ids sides"]]:
    """All bytes in a row, and from where to where are those of an id, inside and as the first."""
    inside = [parts.special.get(i, part or b"") for i, part in enumerate(parts.inside)]
    inside.append(b"")
    ends = np.cumsum([len(part) for part in inside])
    begins = np.concatenate([[0], ends[:-1]])
    spans = np.stack([np.stack([begins, ends], axis=-1)] * 2).astype(np.int32)
    others, total = [], int(ends[-1])
    for number, part in enumerate(parts.first):
        if part is None or part == inside[number]:
            continue
        if inside[number].endswith(part):  # all but its spaces
            spans[1, number, 0] = ends[number] - len(part)
        else:
            others.append(part)
            spans[1, number] = total, total + len(part)
            total += len(part)
    return np.frombuffer(b"".join([*inside, *others, b"\0"]), np.uint8), spans


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
