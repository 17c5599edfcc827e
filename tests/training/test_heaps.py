"""Temporaries of a step on a CPU: kept by the process where they can be, and the same numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

import eqxformer as ef
from eqxformer.inspect.buffers import dumped
from eqxformer.training import heaps
from eqxformer.training.heaps import LARGEST, fits_in_heaps
from tests.helpers.models import filled

OPTIMIZER = ef.AdamW(1e-3).build(steps=10)
WIDE = ef.families.gpt(vocab=11, dim=32, layers=1, heads=2, hidden=4096, context=64)
SMALL = ef.families.gpt(vocab=11, dim=8, layers=1, heads=2, context=8)


@pytest.fixture(autouse=True)
def _nothing_is_kept_on_disk():
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # JAX has looked only once whether there is one
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    reset_cache()


def state_of(config):
    return ef.TrainState.create(filled(config), OPTIMIZER, key=jax.random.key(1))


def batch_of(rows, length):
    draw = np.random.default_rng(0)
    return ef.TokenBatch(jax.device_put(draw.integers(0, 11, (rows, length + 1), np.int32)))


def arrays_of(state):
    return [np.asarray(x) for x in jax.tree.leaves((state.model, state.optimizer))]


def pieces_of(step, *arguments):
    """How many bytes each piece of memory has that a program takes for its temporaries."""
    _, written = dumped(step.lower(*arguments))
    found = re.findall(r"^allocation \d+: size (\d+),.* preallocated-temp", written, re.MULTILINE)
    return [int(size) for size in found]


def test_temporaries_are_in_pieces_that_the_c_library_keeps():
    step = ef.make_step(ef.next_token_loss, OPTIMIZER)
    state, batch = state_of(WIDE), batch_of(12, 64)
    pieces = pieces_of(step, state, batch)
    assert sum(pieces) > 1.2 * LARGEST
    assert max(pieces) <= LARGEST
    part = jax.jit(lambda *given: step(*given))  # of a program without options
    (whole,) = pieces_of(part, state, batch)
    assert sum(pieces) < 1.1 * whole


def test_the_step_is_bit_for_bit_that_of_a_program_with_one_piece_of_temporaries():
    step, batch = ef.make_step(ef.next_token_loss, OPTIMIZER), batch_of(12, 64)
    own, _ = step(state_of(WIDE), batch)
    part, _ = jax.jit(step)(state_of(WIDE), batch)
    for one, other in zip(arrays_of(own), arrays_of(part), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_step_can_be_a_part_of_any_program():
    step, batch = ef.make_step(ef.next_token_loss, OPTIMIZER), batch_of(2, 8)
    one, _ = step(state_of(SMALL), batch)
    one, _ = step(one, batch)
    state = state_of(SMALL)
    looped, _ = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, batch), s, None, length=2))(
        state
    )
    assert int(looped.step) == 2
    for a, b in zip(arrays_of(one), arrays_of(looped), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    held = state_of(SMALL)  # which the traced function holds, and is not given
    assert jax.make_jaxpr(lambda: step(held, batch)[1])().out_avals


@pytest.mark.parametrize("where", ["argument", "made", "in a loop", "in a branch", "in a function"])
def test_a_large_array_anywhere_in_a_program_is_found(where):
    rows = LARGEST // 4 // 1024

    def large(x):
        return jnp.outer(jnp.ones(rows + 1), x).sum()

    function = {
        "argument": jnp.sum,
        "made": large,
        "in a loop": lambda x: jax.lax.fori_loop(0, 2, lambda i, s: s + large(x), 0.0),
        "in a branch": lambda x: jax.lax.cond(x[0] > 0, large, jnp.sum, x),
        "in a function": lambda x: jax.jit(large)(x),
    }[where]
    sizes = [(rows, 1024), (rows + 1, 1024)] if where == "argument" else [(1000,), (1024,)]
    programs = [jax.make_jaxpr(function)(jax.ShapeDtypeStruct(s, "float32")) for s in sizes]
    assert [fits_in_heaps(each) for each in programs] == [True, False]


def test_a_model_with_larger_arrays_has_its_temporaries_in_one_piece_and_warns_of_nothing(capfd):
    wider = SMALL.edit("blocks.*.feed_forward", hidden=2**20 + 1)  # with 8 columns 34 MB
    step = ef.make_step(ef.next_token_loss, OPTIMIZER)
    state, batch = state_of(wider), batch_of(1, 8)
    (_,) = pieces_of(step, state, batch)
    step(state, batch)
    assert "limit" not in capfd.readouterr().err


def test_where_programs_are_kept_on_disk_there_is_one_piece_and_the_next_process_finds_it(tmp_path):
    step = ef.make_step(ef.next_token_loss, OPTIMIZER)
    before = jax.config.jax_compilation_cache_dir
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        step(state_of(WIDE), batch_of(12, 64))
        (_,) = pieces_of(step, state_of(WIDE), batch_of(12, 64))
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    assert list(tmp_path.glob("*updated*"))


def test_an_xla_without_the_option_takes_one_piece(monkeypatch):
    monkeypatch.setattr(heaps, "IN_HEAPS", {"xla_no_such_option": 1})
    step, batch = ef.make_step(ef.next_token_loss, OPTIMIZER), batch_of(2, 8)
    state, _ = step(state_of(SMALL), batch)
    state, metrics = step(state, batch)
    assert int(state.step) == 2
    assert np.isfinite(metrics["loss"])


def test_what_goes_wrong_in_a_step_is_not_taken_for_a_missing_option():
    def wrong(model, batch, *, key=None):
        raise ValueError("nothing to learn")

    with pytest.raises(ValueError, match="nothing to learn"):
        ef.make_step(wrong, OPTIMIZER)(state_of(SMALL), batch_of(2, 8))
