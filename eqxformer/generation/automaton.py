"""Texts of a given form: a deterministic automaton over tokens says what may come next.

A state says which tokens are allowed and where each leads. Tokens are many and mostly alike: in a
string of JSON, all words are. So a token has a class, and the table has a column per class, not per
token: for JSON of a schema and a vocabulary of 50,000, a few hundred kilobytes instead of a few
hundred megabytes.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from eqxformer.generation.following import Memory
from eqxformer.generation.processors import Processor, Seen

_ENDED, _START = 0, 1  # states
_STOP, _NOTHING = 0, 1  # classes of tokens
_SMALLEST = 8
_FAR = np.iinfo(np.int32).max // 2


class NoWay(ValueError):
    """Nothing leads from the start of an automaton to a final state."""


class Automaton(Processor):
    r"""Allows the tokens that lead on in an automaton, and an end id where the text is complete.

                 a           b
        start ───────> 1 ─────────> 2    states 2 and 3 are final, so that a stop id is allowed
                       │ c               in both; in 3 nothing else is, so it is forced
                       └──> 3

    Ways that never come to a final state are left out, so that no text runs into a dead end. Each
    row has a state of its own, from `begin(rows)` on; `generate` takes care of that. An automaton
    with as many tokens whose states and classes round up to the same powers of two compiles
    nothing anew.

    Arguments:
        table: from state and class of a token to the next state; -1 where it is forbidden.
        classes: the class of each token, -1 for one that is never allowed. Tokens that the model
            has beyond these are never allowed either.
        final: whether a text may end in each state.
        stop: the ids that end a text: never part of it, whatever their class.
        start: the state before the first token.
        within_limit: whether to allow only what can still be completed within the tokens that
            there may be. Otherwise a text may be cut at that limit.

    Raises `ValueError` for states or classes that do not exist, no stop ids, or an automaton in
    which nothing leads to a final state; when called, for more tokens than there are logits. Where
    so few tokens are left that no text is short enough, everything is forbidden.

    Source: Willard and Louf 2023, Efficient Guided Generation for Large Language Models (arXiv
    2307.09702), who keep a set of tokens per state.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> pairs = ef.Automaton.of({"start": {1: "one"}, "one": {2: "two"}}, ["two"], stop=0)
        >>> first = pairs.begin(1)
        >>> first(jnp.zeros((1, 4))), first.after(jnp.array([1]))(jnp.zeros((1, 4)))
        (Array([[-inf,   0., -inf, -inf]], dtype=float32),
         Array([[-inf, -inf,   0., -inf]], dtype=float32))
    """

    table: Int[Array, "states classes"]
    classes: Int[Array, " ids"]
    distance: Int[Array, " states"]
    state: Memory | None

    def __init__(
        self,
        table: Int[np.ndarray, "states classes"],
        classes: Int[np.ndarray, " ids"],
        final: Bool[np.ndarray, " states"],
        *,
        stop: int | Sequence[int],
        start: int = 0,
        within_limit: bool = True,
    ):
        stop = (stop,) if isinstance(stop, int | np.integer) else tuple(stop)
        _check(table, classes, stop, start)
        ids = np.full(max(len(classes), 1 + max(stop)), -1)
        ids[: len(classes)] = classes
        ids[list(stop)] = -1
        spelled = np.isin(np.arange(table.shape[1]), ids)
        table = np.pad(np.where(spelled, table, -1), ((0, 0), (0, 1)), constant_values=-1)
        table, final, distance = _trimmed(table, final, start)
        table, column = np.unique(table, axis=1, return_inverse=True)
        kinds = column.reshape(-1)[ids] + 2  # of -1, the last one, with nothing in it
        kinds[list(stop)] = _STOP
        states, columns = table.shape
        whole = np.full((_rounded(states + 1), _rounded(columns + 2)), -1)
        whole[1 : 1 + states, 2 : 2 + columns] = np.where(table < 0, -1, table + 1)
        whole[1 : 1 + states, _STOP] = np.where(final, _ENDED, -1)
        whole[_ENDED, _STOP] = _ENDED
        far = np.zeros(whole.shape[0])
        far[1 : 1 + states] = distance if within_limit else 0
        self.table, self.classes = jnp.asarray(whole, jnp.int32), jnp.asarray(kinds, jnp.int32)
        self.distance, self.state = jnp.asarray(far, jnp.int32), None

    @staticmethod
    def of(
        transitions: Mapping[Hashable, Mapping[int, Hashable]],
        final: Iterable[Hashable],
        *,
        stop: int | Sequence[int],
        start: Hashable = "start",
        within_limit: bool = True,
    ) -> "Automaton":
        """The automaton of states by name: `transitions[state][token]` is the next one.

        Arguments:
            transitions: the tokens that are allowed in each state, and where they lead.
            final: the states that a text may end in.
            stop, start, within_limit: as of an `Automaton`.

        Raises `ValueError` as `Automaton` does, or for a negative token.
        """
        final = list(final)
        after = [state for each in transitions.values() for state in each.values()]
        number = {state: i for i, state in enumerate(dict.fromkeys((*transitions, *after, *final)))}
        tokens = sorted({token for each in transitions.values() for token in each})
        if tokens and tokens[0] < 0:
            raise ValueError(f"Tokens of `Automaton` must not be negative; got {tokens[0]}.")
        classes = np.full(1 + max(tokens, default=0), -1)
        classes[tokens] = np.arange(len(tokens))
        table = np.full((len(number), len(tokens)), -1)
        for state, each in transitions.items():
            for token, following in each.items():
                table[number[state], classes[token]] = number[following]
        ends = np.isin(np.arange(len(number)), [number[state] for state in final])
        return Automaton(
            table,
            classes,
            ends,
            stop=stop,
            start=number.get(start, -1),
            within_limit=within_limit,
        )

    def begin(self, rows: int) -> "Automaton":
        return self._at(jnp.full(rows, _START, jnp.int32))

    def after(self, tokens: Int[Array, " rows"]) -> "Automaton":
        state, ids = self._state(), self.classes.shape[0]
        known = (tokens >= 0) & (tokens < ids)
        kind = jnp.where(known, self.classes[jnp.clip(tokens, 0, ids - 1)], _NOTHING)
        following = jnp.where(state < 0, -1, self.table[jnp.maximum(state, 0), kind])
        return self._at(jnp.where(state == _ENDED, _ENDED, following))

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        ids, vocab = self.classes.shape[0], logits.shape[-1]
        if ids > vocab:
            raise ValueError(f"`Automaton` has {ids} tokens; there are logits of {vocab} only.")
        state = self._state()
        following = self.table[jnp.maximum(state, 0)]
        allowed = (following >= 0) & (state >= 0)[:, None]
        if seen is not None:
            left = jnp.maximum(seen.limit - seen.length, 1)
            allowed &= self.distance[jnp.maximum(following, 0)] < left[:, None]
        kinds = jnp.pad(self.classes, (0, vocab - ids), constant_values=_NOTHING)
        return jnp.where(allowed[:, kinds], logits, -jnp.inf)

    def _state(self) -> Int[Array, " rows"]:
        if self.state is None:
            raise ValueError("`Automaton` has a state per row; call `begin(rows)` first.")
        return self.state.value

    def _at(self, state: Int[Array, " rows"]) -> "Automaton":
        return eqx.tree_at(lambda a: a.state, self, Memory(state), is_leaf=lambda x: x is None)


def _check(table: np.ndarray, classes: np.ndarray, stop: tuple[int, ...], start: int) -> None:
    states, columns = table.shape
    if not stop or min(stop) < 0:
        raise ValueError(f"`stop` must have the ids that end a text, none negative; got {stop}.")
    if not 0 <= start < states:
        raise ValueError(f"`start` must be one of the {states} states; got {start}.")
    for name, numbers, count in (("table", table, states), ("classes", classes, columns)):
        wrong = numbers[(numbers < -1) | (numbers >= count)]
        if wrong.size:
            raise ValueError(f"`{name}` must be -1 or below {count}; got {wrong.flat[0]}.")


def _trimmed(
    table: np.ndarray, final: np.ndarray, start: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The states that lie between the start, which becomes state 0, and a final state.

    Gives their table, whether each is final, and how many tokens it is to the nearest that is.
    """
    states = table.shape[0]
    pairs = np.unique(np.where(table < 0, -1, table + states * np.arange(states)[:, None]))
    before, behind = np.divmod(pairs[pairs >= 0], states)
    distance = _distances(behind, before, np.flatnonzero(final), states)
    if distance[start] == _FAR:
        raise NoWay("No tokens lead from the `start` of the automaton to a final state.")
    both = (distance[before] < _FAR) & (distance[behind] < _FAR)
    depth = _distances(before[both], behind[both], np.array([start]), states)
    kept = np.flatnonzero((distance < _FAR) & (depth < _FAR))
    kept = np.concatenate(([start], kept[kept != start]))
    number = np.full(states + 1, -1)  # of which the last is -1's
    number[kept] = np.arange(len(kept))
    return number[table[kept]], final[kept], distance[kept]


def _distances(
    before: np.ndarray, behind: np.ndarray, begin: np.ndarray, states: int
) -> np.ndarray:
    """How many steps along the edges `before -> behind` it is to each state."""
    order = np.argsort(before, kind="stable")
    behind, ends = behind[order], np.searchsorted(before[order], np.arange(states + 1))
    distance, front, steps = np.full(states, _FAR), begin, 0
    while front.size:
        distance[front] = steps
        steps += 1
        reached = [behind[ends[state] : ends[state + 1]] for state in front]
        front = np.unique(np.concatenate(reached))
        front = front[distance[front] == _FAR]
    return distance


def _rounded(count: int) -> int:
    """The next power of two, so that automata of about the same size share what is compiled."""
    return max(_SMALLEST, 1 << (count - 1).bit_length())
