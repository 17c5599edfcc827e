"""From a regular expression to an automaton over bytes, and from that to one over tokens.

outlines-core can go the whole way, but keeps every token of every state: of a vocabulary of
250,000, hundreds of millions of entries for JSON of a schema. So it is told of 256 tokens, the
bytes, and the walk of the real ones through its automaton is made here, for all states at once.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

_SIMPLE_SET = re.compile(r"\[(?:\^[^\[\]()]+|[^\[\]()^][^\[\]()]*)\]")
_STOP = 256  # the id after which nothing comes
# What the library makes is right up to the first place at which a match could end, where it leaves
# out some of the ways to go on. So it is given expressions that end with what no text holds, the
# last number of Unicode, which is no character.
_LAST = "\U0010ffff"


class ByteAutomaton(NamedTuple):
    """The next state by state and byte, -1 for none; where a text may end; the first state."""

    table: Int[np.ndarray, "states 256"]
    final: Bool[np.ndarray, " states"]
    start: int


def byte_automaton(regex: str) -> ByteAutomaton:
    """The automaton of what matches an expression in full.

    Raises `ImportError` without outlines-core, and `ValueError` for an expression that is invalid
    or has a part that nothing matches. U+10FFFF, which is no character, is never matched.
    """
    index = _index(f"(?:{_without_anchors(regex)}){_LAST}", regex)
    transitions = index.get_transitions()
    number = {state: i for i, state in enumerate(transitions)}
    table = np.full((len(number) + 1, _STOP), -1)
    for state, each in transitions.items():
        for byte, following in each.items():
            if byte != _STOP:
                table[number[state], byte] = number[following]
    ended = np.isin(list(number), list(index.get_final_states()))
    behind = np.arange(len(number))
    for byte in _LAST.encode():
        behind = table[behind, byte]  # the last row of the table, for -1, leads nowhere
    return ByteAutomaton(
        table[:-1], np.append(ended, False)[behind], number[index.get_initial_state()]
    )


def check_expression(regex: str) -> None:
    """Raises `ValueError` for what is an expression only in brackets, as `a)|(b` would be."""
    if ")" in regex and not _closes_its_own(regex):
        _index(_without_anchors(regex) + _LAST, regex)


def _closes_its_own(regex: str) -> bool:
    """Whether every bracket closes one of the expression; False, too, where a glance won't tell.

    That is where a set holds brackets or sets, or where `(?x)` may make a comment of some.
    """
    bare = _SIMPLE_SET.sub("", re.sub(r"(?s)\\.", "", regex))
    if "[" in bare or "]" in bare or re.search(r"\(\?[a-zA-Z-]*x", bare):
        return False
    open_ones = itertools.accumulate((c == "(") - (c == ")") for c in bare)
    return min(open_ones, default=0) >= 0


def _index(expression: str, regex: str) -> Any:
    """The library's automaton of an expression made of `regex`, over bytes."""
    core = outlines_core()
    alone = core.Vocabulary(_STOP, {bytes([byte]): [byte] for byte in range(_STOP)})
    try:
        return core.Index(expression, alone)
    except ValueError as error:
        if "incompatible with the regex" in str(error):
            raise ValueError(f"`{regex}` has a part that no text matches.") from None
        raise ValueError(
            f"`{regex}` must be a regular expression of Rust's crate `regex`, without look-around, "
            f"references back, or `^`, `$` and `\\b` inside; {str(error).rstrip('.')}."
        ) from None


def spelled(
    table: Int[np.ndarray, "states 256"], tokens: Sequence[bytes | None]
) -> tuple[Int[np.ndarray, "states classes"], Int[np.ndarray, " ids"]]:
    """Where each token leads from each state, as a table of classes and the class of each token.

    Tokens that lead to the same place from every state are of one class, also while they are being
    read: what has been read of all tokens is at any time one of few columns.
    """
    states = table.shape[0]  # one more of which is where nothing leads on
    full = np.pad(np.where(table < 0, states, table), ((0, 1), (0, 0)), constant_values=states)
    steps, kind = np.unique(full.T.astype(np.int32), axis=0, return_inverse=True)
    text = kind.reshape(-1)[np.frombuffer(b"".join(t or b"" for t in tokens), np.uint8)]
    lengths = np.array([len(token or b"") for token in tokens], int)
    begins = np.cumsum(lengths) - lengths
    columns = _Columns(states)
    found, alive, place = np.zeros(len(tokens), int), np.flatnonzero(lengths), 0
    while alive.size:
        pairs = found[alive] * len(steps) + text[begins[alive] + place]
        pairs, which = np.unique(pairs, return_inverse=True)
        each = (divmod(pair, len(steps)) for pair in pairs.tolist())
        number = [columns.after(before, steps[step]) for before, step in each]
        found[alive] = np.array(number)[which.reshape(-1)]
        place += 1
        alive = alive[(lengths[alive] > place) & (found[alive] != columns.nowhere)]
    found[lengths == 0] = columns.nowhere  # a token without text would be a step on the spot
    used, classes = np.unique(found, return_inverse=True)
    whole = np.stack([columns.all[number][:states] for number in used], axis=1)
    return np.where(whole == states, -1, whole), classes.reshape(-1)


class _Columns:
    """Where some bytes lead from each state, each such column once."""

    def __init__(self, states: int) -> None:
        self.all: list[np.ndarray] = []
        self.known: dict[bytes, int] = {}
        self._number(np.arange(states + 1, dtype=np.int32))  # where no byte leads
        self.nowhere = self._number(np.full(states + 1, states, np.int32))

    def after(self, number: int, step: np.ndarray) -> int:
        """The number of a column after one more byte."""
        return self._number(step[self.all[number]])

    def _number(self, column: np.ndarray) -> int:
        number = self.known.setdefault(column.tobytes(), len(self.all))
        if number == len(self.all):
            self.all.append(column)
        return number


def outlines_core() -> Any:
    """The package, or an `ImportError` that says how to get it."""
    try:
        import outlines_core
    except ImportError:
        raise ImportError(
            "`Pattern` and `JsonSchema` need outlines-core: pip install 'eqxformer[constrain]'."
        ) from None
    return outlines_core


def _without_anchors(regex: str) -> str:
    """The expression without `^` at its beginning and `$` at its end, both implied."""
    bare = regex.removeprefix("^")
    ahead = bare.removesuffix("$")
    escaped = (len(ahead) - len(ahead.rstrip("\\"))) % 2
    return bare if escaped else ahead
