"""Models, states and batches on a mesh: what each device holds, and that nothing else changes."""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import eqxformer as ef
from tests.helpers.hot import drawn
from tests.sharding.meshes import placed, share, where

CONFIG = ef.families.llama(vocab=64, dim=32, layers=2, heads=8, hidden=64)
FSDP = placed("fsdp=8")


def equal(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs if eqx.is_array(a))


@pytest.fixture(scope="module")
def model():
    """A model with every parameter off its neutral value, on one device."""
    return drawn(CONFIG)


@pytest.fixture(scope="module")
def spread(model):
    """The same model on eight."""
    return FSDP.put(model)


def test_a_model_is_made_where_it_belongs():
    config = CONFIG.edit(blocks=CONFIG.blocks[:1])
    made = FSDP.init(lambda key: config.build(key=key), jax.random.key(3))
    assert where(made) == jax.tree.leaves(FSDP.shardings(made))
    alone = config.build(key=jax.random.key(3))
    for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_no_device_ever_holds_it_whole_while_it_is_made():
    config = ef.Embedding.Config()

    def make(key):
        return config.build(4096, 64, key=key)

    skeleton = eqx.filter_eval_shape(make, jax.random.key(0))
    program = jax.jit(
        lambda key: eqx.filter(make(key), eqx.is_array), out_shardings=FSDP.shardings(skeleton)
    )
    needed = program.lower(jax.random.key(0)).compile().memory_analysis()
    whole = 4096 * 64 * 4
    assert needed.output_size_in_bytes < 1.1 * whole / 8
    assert needed.output_size_in_bytes + needed.temp_size_in_bytes < 0.6 * whole


def test_each_device_holds_an_eighth_of_parameters_and_optimizer(spread):
    state = ef.TrainState.create(spread, ef.AdamW().build(1), key=jax.random.key(0))
    for part in (state.model, state.optimizer):
        assert share(part)[0] < 1.1 / 8


OPTIMIZERS = {
    "adamw": ef.AdamW(),
    "lion": ef.Lion(),
    "muon": ef.Muon(),
    "momentum": ef.SGD(momentum=0.9),
    "adafactor": ef.Adafactor(least=8, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_lie_as_their_parameters(name, spread):
    """Of a matrix of which a row and a column are kept, these lie as its rows and columns."""
    optimizer = OPTIMIZERS[name].build(1)
    abstract = ef.abstract_state(ef.shapes(CONFIG), optimizer, FSDP)
    weight = "feed_forward.up.weight"
    found = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract.optimizer):
        key = jax.tree_util.keystr(path, simple=True, separator=".")
        if key.endswith(f"blocks.groups.0.{weight}"):
            found.add((leaf.shape, leaf.sharding.spec))
    of_matrix = ((32, 64), P("fsdp"))
    of_factors = {((32,), P("fsdp")), ((64,), P()), ((1,), P())}
    assert found == ({of_matrix, *of_factors} if name == "adafactor" else {of_matrix})


class Reward(eqx.Module):
    """A model of one's own, with a field of the name that a state's model has."""

    model: ef.DecoderLM
    score: Annotated[ef.Linear, ef.Axes(in_dim="dim", out_dim="hidden")]


def test_a_model_with_a_part_called_model_lies_whole_on_no_device():
    config = CONFIG.edit(blocks=CONFIG.blocks[:1])

    def make(key, width=16):
        one, other = jax.random.split(key)
        return Reward(config.build(key=one), ef.Linear(32, width, key=other))

    placement = placed("fsdp=2,tensor=4")
    put = placement.put(make(jax.random.key(0)))
    state = placement.put(
        ef.TrainState.create(put, ef.SGD(momentum=0.9).build(1), key=jax.random.key(1))
    )
    for made in (put, placement.init(make, jax.random.key(0)), state.model):
        assert made.score.weight.sharding.spec == P("fsdp", "tensor")
        assert made.model.blocks[0].attention.query.weight.sharding.spec == P("fsdp", "tensor")
    assert where(state.model) == where(put)
    with pytest.raises(
        ValueError, match=r"score.weight.*: hidden=18 is not a multiple of tensor=4"
    ):
        placement.put(make(jax.random.key(0), 18))


def test_a_state_is_made_as_its_abstract_one_says(spread):
    optimizer = ef.Adafactor(least=8).build(1)
    state = ef.TrainState.create(
        spread, optimizer, key=jax.random.key(0), trains=ef.Except(("head",))
    )
    abstract = ef.abstract_state(spread, optimizer, FSDP, trains=ef.Except(("head",)))
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True)
    for made, said in pairs:
        assert (made.shape, made.dtype) == (said.shape, said.dtype)
        assert made.sharding.is_equivalent_to(said.sharding, made.ndim)


def test_rows_are_dealt_out_and_must_come_out_even():
    placement = placed("data=2,fsdp=2,tensor=2")
    batch = ef.TokenBatch(np.arange(32).reshape(8, 4), jnp.ones((8, 4)))
    laid = placement.batch(batch)
    assert {x.sharding.spec for x in jax.tree.leaves(laid)} == {P(("data", "fsdp"))}
    assert equal(laid, batch)
    assert equal(placement.batch_of_process(batch), batch)
    with pytest.raises(ValueError, match="multiple of the 4 devices .*data=2,fsdp=2; got 6"):
        placement.batch(ef.TokenBatch(np.zeros((6, 4), int)))


def test_rows_of_a_process_are_refused_where_processes_hold_the_same_ones(monkeypatch):
    """As on two hosts whose devices share every row: each would bring other numbers for it."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    batch = ef.TokenBatch(np.arange(32).reshape(8, 4), jnp.ones((8, 4)))
    with pytest.raises(ValueError, match=r"2 groups of devices, of which this one of 2 .* holds 2"):
        placed("data=2,tensor=4").batch_of_process(batch)


def test_a_model_is_saved_from_a_mesh_and_loaded_to_another(spread, model, tmp_path):
    ef.save(spread, tmp_path / "own")
    ef.save_pretrained(spread, tmp_path / "theirs")
    other = placed("fsdp=2,tensor=4")
    for read in (
        lambda where: ef.load(tmp_path / "own", sharding=where),
        lambda where: ef.from_pretrained(tmp_path / "theirs", sharding=where),
    ):
        assert equal(read(None), model)
        again = read(other)
        assert equal(again, model)
        assert again.blocks[0].attention.query.weight.sharding == NamedSharding(
            other.mesh, P("fsdp", "tensor")
        )


def test_stacked_layers_are_loaded_to_where_they_belong(model, tmp_path):
    ef.save(ef.rebuild(model, CONFIG.edit(layout=ef.Scanned())), tmp_path)
    loaded = ef.load(tmp_path, sharding=FSDP)
    assert where(loaded) == jax.tree.leaves(FSDP.shardings(loaded))
    assert share(loaded)[0] < 1.1 / 8


def test_a_model_on_a_mesh_generates_the_same():
    model = drawn(ef.families.gpt(vocab=16, dim=16, layers=1, heads=4, context=16))
    prompts = [[1, 2, 3], [4, 5]]
    wanted = ef.generate(model, prompts, max_new_tokens=5)
    spread = placed("fsdp=2,tensor=4").put(model)
    assert ef.generate(spread, prompts, max_new_tokens=5) == wanted
