"""Which arrays are trained: by path, one by one or stacked."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers.compare import same_bits

CONFIG = ef.families.gpt(vocab=7, dim=4, layers=3, heads=2, context=6)
BATCH = ef.TokenBatch(np.arange(14, dtype=np.int32).reshape(2, 7) % 7)


@pytest.fixture(scope="module", params=["unrolled", "scanned"])
def model(request):
    layout = {"unrolled": ef.Unrolled(), "scanned": ef.Scanned()}[request.param]
    return CONFIG.edit(layout=layout).build(key=jax.random.key(0))


def names(tree):
    return set(ef.named_arrays(tree))


def test_everything_of_a_floating_type_is_trained_by_default(model):
    assert names(ef.Trainable().of(model)) == names(model)
    whole = eqx.tree_at(lambda m: m.norm.bias, model, jnp.arange(4))
    assert names(ef.Trainable().of(whole)) == names(model) - {"norm.bias"}


PATHS = {
    "embedding": {"embedding.tokens.weight", "embedding.positions.weight"},
    "norm.weight": {"norm.weight"},
    "**.query.bias": {f"blocks.{i}.attention.query.bias" for i in range(3)},
    "blocks.*.attention.out": {
        f"blocks.{i}.attention.out.{part}" for i in range(3) for part in ("weight", "bias")
    },
    "**": None,
}


@pytest.mark.parametrize("path", PATHS)
def test_only_and_except_divide_a_model(model, path):
    expected = PATHS[path] or names(model)
    assert names(ef.Only(paths=(path,)).of(model)) == expected
    assert names(ef.Except(paths=(path,)).of(model)) == names(model) - expected


def test_a_path_ends_at_a_name_and_not_within_it(model):
    with pytest.raises(ValueError, match="`embed` leads to no array of the model.*ef.table"):
        ef.Only(paths=("embed",)).of(model)
    with pytest.raises(ValueError, match="Did you mean `norm.weight`"):
        ef.Except(paths=("norm.wieght",)).of(model)


def test_layers_in_one_array_are_trained_together_or_not_at_all(model):
    some = ef.Only(paths=("blocks.1.attention",))
    if model.blocks.sizes == (3,):
        with pytest.raises(ValueError, match=r"blocks.0.*to blocks.2.*are stored as one array"):
            some.of(model)
    else:
        assert {name.split(".")[1] for name in names(some.of(model))} == {"1"}


def test_what_is_frozen_stays_and_has_no_memory_and_no_gradient():
    model = CONFIG.build(key=jax.random.key(0))
    trains = ef.Only(paths=("norm", "blocks.2"))
    optimizer = ef.AdamW(0.1).build(steps=9)
    state = ef.TrainState.create(model, optimizer, key=jax.random.key(1), trains=trains)
    count = ef.count(trains.of(model))
    numbers = [x for x in jax.tree.leaves(state.optimizer) if x.ndim]
    assert sum(x.size for x in numbers) == 2 * count
    state, metrics = ef.make_step(ef.NextToken(), optimizer)(state, BATCH)
    before, after = ef.named_arrays(model), ef.named_arrays(state.model)
    moved = {name for name in before if not same_bits(before[name], after[name])}
    # the slope of a key's bias is zero but for rounding, which Adam makes as large as any
    assert moved | {"blocks.2.attention.key.bias"} == names(trains.of(model))
    gradient = eqx.filter_jit(eqx.filter_grad(ef.next_token_loss))(model, BATCH)
    squares = [float(jnp.sum(g**2)) for g in jax.tree.leaves(trains.of(gradient))]
    np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt(sum(squares)), rtol=1e-5)


def test_a_state_says_what_it_trains_and_a_config_keeps_it():
    trains = ef.Except(paths=("embedding",))
    assert ef.Config.from_json(trains.to_json()) == trains
    with pytest.raises(ValueError, match="must name at least one path"):
        ef.Only(paths=())
