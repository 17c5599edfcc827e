"""What looking up in the text, and in a source, proposes."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef


def looked_up(text, sources, ngram, ahead):
    """In Python: the newest of the longest matches of the end of `text`, and what follows it."""
    best = (0, None)
    for source in sources:
        for place in range(len(source) - 1):
            size = 0
            while (
                size < min(ngram, place + 1, len(text))
                and source[place - size] == text[len(text) - 1 - size]
            ):
                size += 1
            if size and (size > best[0] or (size == best[0] and source is best[1][0])):
                best = (size, (source, place))
    if best[1] is None:
        return []
    source, place = best[1]
    follow = source[place + 1 :]
    return (follow * ahead if source is text else follow)[:ahead]


@pytest.mark.parametrize("also_source", [False, True])
def test_prompt_lookup_finds_the_newest_of_the_longest_matches(also_source):
    random = np.random.default_rng(0)
    rows, slots, ngram, ahead = 200, 12, 3, 4
    text, lengths = random.integers(0, 3, (rows, slots)), random.integers(1, slots + 1, rows)
    source, sizes = random.integers(0, 3, (rows, 9)), random.integers(1, 10, rows)
    length = jnp.asarray(lengths, jnp.int32)
    seen = ef.Seen(jnp.asarray(text, jnp.int32), length, length, length + 9)
    memory = (jnp.asarray(source, jnp.int32), jnp.asarray(sizes, jnp.int32))
    draft, room = ef.PromptLookup(ngram, ahead), jnp.full(rows, ahead)
    given = (memory if also_source else None, seen, room, ef.Greedy(), None)
    found, _ = eqx.filter_jit(draft.propose)(*given)
    empty = 0
    for row in range(rows):
        own, other = text[row, : lengths[row]].tolist(), source[row, : sizes[row]].tolist()
        wanted = looked_up(own, [own, other] if also_source else [own], ngram, ahead)
        got = found.tokens[row, : int(found.count[row])].tolist()
        assert [token for token in got if token >= 0] == wanted
        assert -1 not in got[: len(wanted)]
        empty += not wanted
    assert 0 < empty < rows / 2
