"""Where JAX has 64 bits and mixes no types by itself, counts and numbers keep theirs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.generation._beams import Finished, Settings, advance
from tests.generation.small import small

PROMPTS = [[1, 2, 3, 1, 2], [4, 5]]
CHANGING = (
    ef.RepetitionPenalty(1.2)
    | ef.PresencePenalty(0.1)
    | ef.FrequencyPenalty(0.1)
    | ef.LogitBias({1: 0.5, (1, 2): -1.0})
    | ef.ExponentialLengthPenalty(1, 1.1, stop=(0,))
    | ef.NoRepeatNGram(3)
    | ef.BadWords([(1, 2)])
    | ef.MinNewTokens(2, stop=(0,))
    | ef.SuppressAtBegin((1,))
)
LEAVING_OUT = (
    ef.Temperature(0.7)
    | ef.TopK(9)
    | ef.TopP(0.9)
    | ef.Typical(0.9)
    | ef.TopH(0.9)
    | ef.Normalize()
)


@pytest.fixture(autouse=True)
def wide():
    """Both switches; outside of tests, types are mixed and whole numbers have 32 bits."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


def test_what_changes_logits_and_what_stops_keep_their_types():
    options = {"sampler": CHANGING | LEAVING_OUT, "key": jax.random.key(0), "start": 1}
    stop = ef.StopIds(0) | ef.StopStrings("never", (b"a",) * 13)
    made = ef.generate(small("t5"), PROMPTS, max_new_tokens=5, stop=stop, **options)
    assert all(2 <= len(row) <= 5 for row in made)


def test_a_state_keeps_its_types():
    state = ef.prefill(small("gpt"), PROMPTS, slots=64, chunk=3)
    state = ef.append(small("gpt"), ef.decode(small("gpt"), state, max_new_tokens=2), [[1], [2]])
    assert {leaf.dtype for leaf in jax.tree.leaves(state.seen)} == {np.dtype(np.int32)}
    assert [len(row) for row in state.tokens()] == [8, 5]


@pytest.mark.parametrize("draft", [ef.PromptLookup(2, 3), None], ids=["looks", "reads"])
def test_proposals_keep_their_types(draft):
    draft = ef.DraftModel(small("t5"), 2) if draft is None else draft
    options = {"max_new_tokens": 5, "start": (1, 2)}
    made = ef.generate_speculative(small("t5"), PROMPTS, draft=draft, **options)
    assert made.tokens == ef.generate(small("t5"), PROMPTS, **options)


@pytest.mark.parametrize("kind", [jnp.float32, jnp.float64])
def test_a_step_of_beams_keeps_its_types(kind):
    """Of two groups of two beams, each of which goes on from the best it has."""
    numbers = {"length_penalty": jnp.float32(0.7), "diversity_penalty": jnp.float32(5.0)}
    most = {"early": jnp.int32(0), "most": jnp.int32(3)}
    settings = Settings(**numbers, **most, groups=2, candidates=2)
    seen = ef.Seen.start(jnp.ones((4, 1), jnp.int32), None, new=3)
    total = -jnp.arange(20, dtype=kind).reshape(1, 4, 5)
    none = Finished.none(seen, jnp.zeros((1, 4), kind))
    step = eqx.filter_jit(advance)
    found = step(settings, ef.StopIds(4), seen, total, none, jnp.zeros((1, 2), bool))
    assert found.tokens.tolist() == [[0, 1, 2, 3]]
    assert (found.scores.dtype, found.finished.scores.dtype) == (kind, kind)


@pytest.mark.parametrize("name", ["gpt", "t5"])
def test_a_beam_search_keeps_its_types(name):
    options = {"beams": 2, "max_new_tokens": 4, "start": 1 if name == "t5" else None}
    found = ef.beam_search(small(name), PROMPTS, **options)
    assert [len(row) for row in found.tokens] == [1, 1]
