"""An automaton that finds any of several byte strings in one pass (Aho and Corasick 1975).

Its state is the longest end of what was read that some string begins with:

    strings  she, he                 read  u s h e
                                     state . s sh she      "she" is found, and "he" in it
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Automaton(NamedTuple):
    """What follows in each state, and what it says; state 0 is the beginning.

    Arguments:
        following: the state after each byte.
        depth: how many of the newest bytes some string begins with.
        found: how long the longest string is that has just ended, or 0.
    """

    following: Int[np.ndarray, "states bytes"]
    depth: Int[np.ndarray, " states"]
    found: Int[np.ndarray, " states"]


def automaton(strings: Iterable[bytes]) -> Automaton:
    """The automaton of these strings, of which none is empty."""
    children: list[dict[int, int]] = [{}]
    ends: set[int] = set()
    for string in strings:
        state = 0
        for byte in string:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
            state = children[state][byte]
        ends.add(state)
    following = np.zeros((len(children), 256), np.int32)
    depth, found = (np.zeros(len(children), np.int32) for _ in range(2))
    queue = deque([(0, 0, 0)])  # a state, what it falls back to, its depth
    while queue:
        state, back, depth[state] = queue.popleft()
        found[state] = depth[state] if state in ends else found[back]
        following[state] = following[back]
        for byte, child in children[state].items():
            queue.append((child, int(following[back, byte]) if state else 0, depth[state] + 1))
            following[state, byte] = child
    return Automaton(following, depth, found)


class Search:
    """A search through a text that comes in pieces, for the first string that is complete."""

    def __init__(self, strings: Sequence[bytes]) -> None:
        self.automaton = automaton(strings)
        self.following = memoryview(self.automaton.following.tobytes()).cast("i")
        self.state = 0

    def feed(self, data: bytes) -> tuple[int, int] | None:
        """Where in these bytes a string has ended, and how long it is; None if none has."""
        found, following, state = self.automaton.found, self.following, self.state
        hits = set(np.flatnonzero(found).tolist())
        for place, byte in enumerate(data):
            state = following[256 * state + byte]
            if state in hits:
                self.state = state
                return place + 1, int(found[state])
        self.state = state
        return None

    @property
    def held(self) -> int:
        """How many of the newest bytes may be the beginning of a string."""
        return int(self.automaton.depth[self.state])


def strings_given(strings: str | Iterable[str], owner: str) -> tuple[str, ...]:
    """Strings to stop at, as a tuple; raises `ValueError` for what is none."""
    given = (strings,) if isinstance(strings, str) else tuple(strings)
    for string in given:
        if not isinstance(string, str) or not string:
            raise ValueError(
                f"Every string of `{owner}` must be a text of at least one letter; got {string!r}."
            )
    return given
