"""How many programs generation compiles, and how many bytes it holds."""

import gc
import importlib
import os
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.generation.prefill import _read as read
from tests.generation.small import shallow, small
from tests.helpers.compiling import compilations
from tests.helpers.models import VOCAB, filled, model

MODULE = importlib.import_module("eqxformer.generation.prefill")
BUCKETS = 3  # 16, 32 and 64


def text(length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


def test_prompts_of_fifty_lengths_compile_a_pass_per_bucket_and_one_loop():
    built = small("gemma")
    with compilations() as programs:
        for length in range(1, 51):
            ef.generate(built, [text(length)], max_new_tokens=8)
    assert len(programs) == BUCKETS + 1
    with compilations() as programs:  # whatever the prompts, if the slots are said
        for length in (3, 17, 60):
            ef.generate(built, [text(length)], max_new_tokens=3 + length % 5, slots=80)
    assert len(programs) == BUCKETS + 1


def test_other_numbers_keys_stops_and_prompts_compile_nothing():
    built = small("llama")

    def run(temperature, share, penalty, seed, stop):
        sampler = ef.RepetitionPenalty(penalty) | ef.Temperature(temperature) | ef.TopP(share)
        return ef.generate(
            built,
            [text(5, seed), text(9, seed)],
            max_new_tokens=4 + seed,
            sampler=sampler,
            stop=stop,
            key=jax.random.key(seed),
        )

    run(1.0, 0.9, 1.1, 0, (1, 2))
    with compilations() as programs:
        run(0.5, 0.8, 1.3, 1, (3, 4))
        run(2.0, 1.0, 1.0, 2, (5, 6))
    assert programs == []


def test_a_stream_and_a_state_use_the_programs_of_generate():
    built = small("llama")
    ef.generate(built, [text(5)], max_new_tokens=9)
    with compilations() as programs:
        pieces = list(ef.stream(built, [text(7)], max_new_tokens=9, slots=64))
    assert len(pieces) == 3
    assert len(programs) == 1  # the pass over the newest token, with which each piece begins
    with compilations() as programs:
        state = ef.prefill(built, [text(9)], slots=64)
        state = ef.decode(built, state, max_new_tokens=3)
        state = ef.decode(built, state, max_new_tokens=3)
    assert len(programs) <= 2  # copies of a state, with logits and without


def test_reading_in_chunks_compiles_two_programs_for_prompts_of_all_lengths():
    built = small("llama")
    with compilations() as programs:
        for length in (4, 9, 30, 50):
            ef.prefill(built, [text(length)], slots=64, chunk=4)
    assert len(programs) == 2


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_a_cache_holds_two_numbers_per_layer_slot_kv_head_and_size_and_of_a_window_its_length(name):
    built, rows, slots = model(name), 3, 32
    state = ef.prefill(built, [text(5)] * rows, slots=slots)
    expected = 0
    for block in built.config.blocks:
        attention = block.attention
        kept = min(slots, attention.window or slots)
        heads = attention.kv_heads or attention.heads
        head_dim = attention.head_dim or built.config.dim // attention.heads
        expected += 2 * rows * kept * heads * head_dim * 4
    arrays = jax.tree.leaves(eqx.filter(state.cache.blocks, eqx.is_inexact_array))
    assert sum(array.nbytes for array in arrays) == expected


def test_a_cache_in_half_precision_holds_half_the_bytes():
    whole = small("llama")
    half = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.bfloat16), whole)
    sizes = [
        sum(
            x.nbytes
            for x in jax.tree.leaves(ef.prefill(m, [[1]], slots=32).cache.blocks)
            if x.ndim > 1
        )
        for m in (whole, half)
    ]
    assert sizes[0] == 2 * sizes[1]


def _pass_over(built, size):
    """The compiled program of a pass over prompts of this size, as text."""
    state = ef.prefill(built, [text(size)] * 2, slots=64)
    ids = jnp.ones((2, size), jnp.int32)
    return _lowered(built, state, ids).as_text()


def _lowered(built, state, ids):
    """The compiled program that reads these ids into a state."""
    rest = eqx.tree_at(lambda s: s.cache, state, None)
    return read.lower((built, rest, ids, ids > 0), state.cache).compile().compiled


def _arrays(state):
    return [leaf for leaf in jax.tree.leaves(state) if eqx.is_array(leaf)]


@pytest.mark.parametrize("name", ["gemma", "t5"])
def test_tokens_are_read_into_a_cache_without_a_copy_of_it(name):
    start = {"start": 1} if name == "t5" else {}
    state = ef.prefill(small(name), [text(5)] * 2, slots=64, **start)
    memory = _lowered(small(name), state, jnp.ones((2, 1), jnp.int32)).memory_analysis()
    assert memory.alias_size_in_bytes == sum(leaf.nbytes for leaf in _arrays(state.cache))


def test_a_stream_and_a_long_prompt_are_read_into_the_cache_there_is(monkeypatch):
    given, inner = [], MODULE._read_over

    def spied(model, state, tokens, valid):
        given.append(state)
        return inner(model, state, tokens, valid)

    monkeypatch.setattr(MODULE, "_read_over", spied)
    pieces = list(ef.stream(small("llama"), [text(7)], max_new_tokens=9, slots=64, chunk=3))
    assert (len(pieces), len(given)) == (3, 4)
    assert all(leaf.is_deleted() for state in given for leaf in _arrays(state.cache))


@pytest.mark.parametrize("name", ["gemma", "t5"])
def test_a_state_that_someone_holds_is_never_written_over(name):
    built, start = small(name), {"start": 1} if name == "t5" else {}
    begun = ef.prefill(built, [text(5), text(2)], slots=64, **start)
    gone_on = ef.decode(built, begun, max_new_tokens=2)
    before = [[np.array(leaf) for leaf in _arrays(each)] for each in (begun, gone_on)]
    for state in (begun, gone_on):
        ef.append(built, state, [[1, 2, 3], [4]], chunk=1)
        ef.decode(built, state, max_new_tokens=2)
    for state, arrays in zip((begun, gone_on), before, strict=True):
        for leaf, array in zip(_arrays(state), arrays, strict=True):
            np.testing.assert_array_equal(leaf, array)


def test_only_the_logits_of_the_next_token_are_made():
    program = _pass_over(filled(shallow("llama").edit(vocab=977)), 48)
    assert "f32[2,977]" in program
    assert not re.search(r"f32\[(2,48|96|48),977\]", program)


def test_keys_that_heads_share_are_never_repeated_for_each_of_them():
    config = shallow("llama").edit("blocks.*.attention", heads=12, kv_heads=2)
    program = _pass_over(filled(config), 48)
    assert "f32[2,2,64,6]" in program  # the cache: rows, kv_heads, slots, head_dim
    assert not re.search(r"f32\[(2,12|2,2,6|24),(64,6|6,64)\]", program)


def test_two_hundred_calls_leave_no_arrays_and_no_memory_behind():
    built = small("llama")

    def call(seed):
        made = ef.generate(
            built,
            [text(3 + seed % 9, seed)],
            max_new_tokens=4,
            sampler=ef.TopP(0.9),
            slots=64,
            key=jax.random.key(seed),
        )
        return len(made[0])

    for seed in range(40):
        call(seed)
    gc.collect()
    arrays, before = len(jax.live_arrays()), _resident()
    assert sum(call(seed) for seed in range(200)) == 800
    gc.collect()
    assert len(jax.live_arrays()) == arrays
    assert _resident() - before < 200 * 2**14


def _resident():
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
