"""What beam search keeps of prompts, sources and beams, what it compiles, and what it refuses."""

import importlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.generation._selection import BLOCK, largest
from eqxformer.layers.dot_product import attend
from eqxformer.layers.plain_attention import Scoring
from tests.generation.small import shallow, small
from tests.helpers.hot import normal
from tests.helpers.models import SEQ2SEQ, VOCAB, filled, tokens

MODULE = importlib.import_module("eqxformer.generation.beam_search")
ROWS, BEAMS, NEW, HEADS, SIZE, WINDOW = 2, 5, 9, 3, 4, 3
KEYS, PROMPT, STEPS = 32, 16, 16  # the places that 17, 1 and 9 tokens are given
SLOTS, NEAR = PROMPT + STEPS * BEAMS, WINDOW + WINDOW * BEAMS
MOVES = {"dynamic_update_slice", "reshape", "transpose", "squeeze", "broadcast_in_dim"}


@pytest.fixture(scope="module")
def loop():
    """The body of the loop for an encoder-decoder, one of whose blocks has a window."""
    seen, search = [], MODULE._search

    def stop(*given):
        seen.append(given)
        raise InterruptedError

    built = filled(SEQ2SEQ["t5"].edit("decoder.blocks.0.attention", window=WINDOW))
    options = {"beams": BEAMS, "max_new_tokens": NEW, "start": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "_search", stop)
        with pytest.raises(InterruptedError):
            ef.beam_search(built, tokens(ROWS, 17), **options)
    traced = eqx.filter_make_jaxpr(search)(*seen[0])[0]
    (found,) = [each for each in _equations(traced.jaxpr) if each.primitive.name == "while"]
    return found.params["body_jaxpr"].jaxpr


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def _made(loop, places):
    """What the loop makes that has so many places and the size of a head: primitive and numbers."""
    return [
        (equation.primitive.name, out.aval.size)
        for equation in _equations(loop)
        for out in equation.outvars
        if {places, SIZE} <= set(out.aval.shape)
    ]


def test_the_keys_of_a_source_are_there_once_a_row_and_no_step_carries_or_copies_them(loop):
    assert not [v for v in loop.outvars if {KEYS, SIZE} <= set(v.aval.shape)]
    made = _made(loop, KEYS)
    assert made  # what looks at them
    assert {name for name, _ in made} - {"jit", "pjit"} <= {"transpose", "squeeze", "reshape"}
    assert max(size for _, size in made) == ROWS * HEADS * KEYS * SIZE


@pytest.mark.parametrize("slots", [SLOTS, NEAR], ids=["whole", "window"])
def test_keys_of_prompts_are_there_once_a_row_and_those_of_beams_are_written_once(loop, slots):
    carried = [v.aval for v in loop.outvars if {slots, SIZE} <= set(v.aval.shape)]
    assert [each.size for each in carried] == [ROWS * HEADS * slots * SIZE] * 2
    made = _made(loop, slots)
    assert {name for name, _ in made} - {"jit", "pjit"} <= MOVES
    assert max(size for _, size in made) == ROWS * HEADS * slots * SIZE


@pytest.mark.parametrize("backend", ["plain", "xla"])
def test_every_kernel_shares_keys_along_an_axis_of_one(backend):
    query, keys, values = (
        normal(0, 2, 5, 6, 1, 4),
        normal(1, 2, 1, 3, 7, 4),
        normal(2, 2, 1, 3, 7, 4),
    )

    def attended(keys, values):
        return attend(query, keys, values, scoring=Scoring(0.5), backend=backend)

    repeated = (jnp.repeat(x, 5, axis=1) for x in (keys, values))
    np.testing.assert_allclose(attended(keys, values), attended(*repeated), rtol=1e-5, atol=1e-6)


def test_the_last_position_of_a_model_is_used_and_no_more():
    built = filled(shallow("gpt").edit("embedding.positions", length=6))
    found = ef.beam_search(built, [[1, 2, 3, 4]], beams=2, max_new_tokens=3)
    assert len(found.tokens[0][0]) == 3
    with pytest.raises(ValueError, match=r"6 positions, so that after 4 tokens .* at most 3 new"):
        ef.beam_search(built, [[1, 2, 3, 4]], beams=2, max_new_tokens=4)


def test_the_largest_of_long_rows_are_those_of_a_sort_ties_included():
    random = np.random.default_rng(0)
    for numbers in (BLOCK * 9, BLOCK * 9 - 5, 17):
        values = random.integers(0, 40, (3, numbers)).astype(np.float32)
        values[1, 5:] = -np.inf
        found, places = largest(jnp.asarray(values), 8)
        order = np.argsort(-values, axis=1, kind="stable")[:, :8]
        np.testing.assert_array_equal(places, order)
        np.testing.assert_array_equal(found, np.take_along_axis(values, order, 1))


BAD = [
    ({"beams": 0}, "`beams` must be positive; got 0"),
    ({"best": 4}, "`best` must be at most `beams`; got best=4, beams=3"),
    ({"groups": 2, "diversity_penalty": 1.0}, "`groups` must divide `beams`; got groups=2"),
    ({"groups": 3}, "`diversity_penalty` must be above 0 where there are several groups"),
    ({"diversity_penalty": 1.0}, "and 0 otherwise; got 1.0 with groups=1"),
    ({"length_penalty": float("nan")}, "`length_penalty` must be finite; got nan"),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be positive; got 0"),
    ({"stop": VOCAB}, "ids of `stop` must be below 13; got 13"),
    ({"processor": ef.Suppress((VOCAB,))}, "ids of `Suppress` must be below 13; got 13"),
    ({"slots": 5}, "5 slots, 2 of them taken, so that it can hold 3 new tokens"),
    ({"start": 1}, "`start` is for encoder-decoders"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_what_cannot_be_searched_is_refused_with_the_reason(changes, message):
    with pytest.raises(ValueError, match=message):
        ef.beam_search(small("gpt"), [[1, 2]], **{"beams": 3, "max_new_tokens": 4, **changes})


def test_values_of_other_types_are_refused_where_no_contract_does():
    with pytest.raises(ValueError, match="`early_stopping` must be True, False or"):
        MODULE._check(3, 1, 1, 0.0, 1.0, "always")
    with pytest.raises(ValueError, match=r"`processor` must be a processor, .* got Sample"):
        MODULE._choices(small("gpt"), 1, 4, ef.Sample(), ())


class Spoiled(ef.Processor):
    """Puts a number in the place of all of the second row."""

    number: jax.Array

    def __call__(self, logits, seen=None):
        return jnp.where(seen.tokens[:, :1] == 2, self.number, logits)


def test_a_row_that_has_no_text_is_named():
    options = {"beams": 2, "max_new_tokens": 2}
    for number in (jnp.nan, -jnp.inf):
        with pytest.raises(ValueError, match="Row 1 has no token to choose"):
            ef.beam_search(
                small("gpt"), [[1], [2]], processor=Spoiled(jnp.asarray(number)), **options
            )


def test_a_given_number_of_slots_changes_no_text():
    options = {"beams": 3, "best": 3, "max_new_tokens": 4}
    free = ef.beam_search(small("gpt"), [[1, 2], [3]], **options)
    given = ef.beam_search(small("gpt"), [[1, 2], [3]], **options, slots=23)
    assert free.tokens == given.tokens
    np.testing.assert_allclose(free.scores, given.scores, rtol=1e-6)
