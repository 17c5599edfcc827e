"""How many programs building a model and training it compile, which depth must not change."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.keys import split
from tests.helpers.compare import same_bits
from tests.helpers.compiling import compilations
from tests.helpers.models import filled


def config(layers, layout, dim=8):
    sizes = {"vocab": 11, "dim": dim, "layers": layers, "heads": 2, "context": 4}
    return ef.families.gpt(**sizes).edit(layout=layout)


def built(layers, layout, dim=8):
    """A model, and how many programs that took, with none compiled before."""
    jax.clear_caches()
    with compilations() as compiled:
        model = config(layers, layout, dim).build(key=jax.random.key(0))
    return model, len(compiled)


@pytest.mark.parametrize("layout", [ef.Unrolled(), ef.Scanned()])
def test_building_48_layers_compiles_as_much_as_building_2(layout):
    few, many = (built(layers, layout)[1] for layers in (2, 48))
    assert 0 < many <= few


def test_a_deeper_model_of_blocks_that_were_built_before_draws_with_their_programs():
    built(2, ef.Unrolled())
    with compilations() as compiled:
        config(5, ef.Unrolled()).build(key=jax.random.key(0))
    assert not compiled


def test_blocks_start_with_the_same_bits_however_they_are_stored():
    stacked, _ = built(3, ef.Scanned())
    alone, _ = built(3, ef.Unrolled())
    for one, other in zip(stacked.blocks, alone.blocks, strict=True):
        assert same_bits(one, other)


def test_building_again_compiles_nothing():
    for layout in (ef.Unrolled(), ef.Scanned()):
        config(3, layout).build(key=jax.random.key(0))
        key = jax.random.key(1)
        with compilations() as compiled:
            config(3, layout).build(key=key)
        assert not compiled


@pytest.mark.parametrize("layout", [ef.Unrolled(), ef.Scanned()])
def test_a_state_is_copied_with_no_program_of_its_own(layout):
    model, _ = built(2, layout)
    optimizer, key = ef.AdamW(1e-2).build(steps=5), jax.random.key(1)
    jax.block_until_ready(
        (optimizer.init(eqx.filter(model, eqx.is_array)), jnp.zeros((), jnp.int32))
    )
    with compilations() as compiled:
        ef.TrainState.create(model, optimizer, key=key)
    assert not compiled


def test_keys_are_drawn_and_taken_apart_in_one_program():
    key = jax.random.key(0)
    jax.clear_caches()
    with compilations() as compiled:
        parts = split(key, 5)
    assert len(compiled) == 1
    assert same_bits(
        jnp.stack([jax.random.key_data(part) for part in parts]),
        jax.random.key_data(jax.random.split(jax.random.key(0), 5)),
    )


def test_steps_after_the_first_compile_nothing():
    model = config(2, ef.Scanned()).build(key=jax.random.key(0))
    optimizer = ef.AdamW(ef.WarmupCosine(1e-2, warmup=5)).build(steps=50)
    state = ef.TrainState.create(model, optimizer, key=jax.random.key(1))
    step = ef.make_step(ef.NextToken(), optimizer)
    batch = ef.TokenBatch(np.zeros((2, 5), np.int32))
    state, _ = step(state, batch)
    with compilations() as compiled:
        for _ in range(3):
            state, _ = step(state, batch)
    assert not compiled
    assert jnp.isfinite(state.step)


def test_loading_compiles_nothing_for_weights_of_whatever_shape(tmp_path):
    for width in (16, 24):
        config = ef.families.gpt(vocab=11 + width, dim=width, layers=1, heads=2, context=8)
        ef.save(filled(config), tmp_path / str(width))
    ef.load(tmp_path / "16")
    with compilations() as compiled:
        found = ef.load(tmp_path / "24")
    assert not compiled
    assert same_bits(found, filled(config))


def test_any_usual_number_of_keys_is_drawn_by_one_program():
    first, *others = [jax.random.key(number) for number in range(9)]
    split(first, 2)
    with compilations() as compiled:
        every = [split(key, count) for count, key in enumerate(others, 1)]
    assert not compiled
    assert [len(keys) for keys in every] == list(range(1, 9))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("counted", [True, False])
def test_keys_are_those_that_jax_splits_also_in_a_program_however_many(impl, counted):
    key = jax.random.key(0, impl=impl)
    with jax.threefry_partitionable(counted):
        for count in (1, 2, 3, 7, 8, 9):
            right = jax.random.key_data(jax.random.split(jax.random.clone(key), count))
            for made in (split, jax.jit(split, static_argnums=1)):
                keys = made(jax.random.clone(key), count)
                assert np.array_equal([jax.random.key_data(each) for each in keys], right)
