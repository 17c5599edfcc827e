"""Trees as lists of arrays, which a training step takes and gives."""

import copy
import gc
import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.training import flat
from eqxformer.training.flat import Flat
from tests.helpers.compiling import compilations


class Part(eqx.Module):
    """Arrays of both kinds, and leaves that are none."""

    weight: jax.Array
    size: int
    name: str
    inner: Any
    numbers: np.ndarray


def part(inner=()):
    return Part(jnp.arange(3.0), 3, "part", inner, np.ones(2, np.float32))


def test_a_tree_is_what_it_was_when_put_together():
    taken = Flat.of(part((jnp.ones(2), None, part())))
    assert len(taken.arrays) == 5
    tree = taken.tree()
    assert (tree.size, tree.name, tree.inner[1], tree.inner[2].size) == (3, "part", None, 3)
    assert tree.weight is taken.arrays[0]
    assert Flat.of(tree) is taken


def test_a_tree_put_together_has_the_structure_of_a_fresh_one_and_is_forgotten_with_it():
    before = len(flat._MADE)
    tree = Flat.of(part((part(),))).tree()
    assert jax.tree.structure(tree) == jax.tree.structure(part((part(),)))
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), tree, part((part(),)))
    assert all(jax.tree.leaves(same))
    assert len(flat._MADE) == before + 1
    del tree
    gc.collect()
    assert len(flat._MADE) <= before


def test_leaves_that_are_no_arrays_compile_a_program_of_their_own():
    @jax.jit
    def double(flat):
        tree = flat.tree()
        return Flat.of(eqx.tree_at(lambda t: t.weight, tree, tree.size * tree.weight))

    np.testing.assert_array_equal(double(Flat.of(part())).tree().weight, [0, 3, 6])
    larger = eqx.tree_at(lambda t: t.size, part(), 5)
    np.testing.assert_array_equal(double(Flat.of(larger)).tree().weight, [0, 5, 10])
    with compilations() as compiled:
        result = double(Flat.of(part())).tree()
    assert not compiled
    assert result.size == 3


@pytest.mark.parametrize("inner", [[1.0], {"a": 1.0}])
def test_what_can_change_is_taken_apart_anew(inner):
    tree = Flat.of(part(inner)).tree()
    tree.inner[0 if isinstance(inner, list) else "a"] = 2.0
    assert 2.0 in Flat.of(tree).shape.fixed


def test_changed_copied_and_pickled_trees_are_taken_apart_anew():
    tree = Flat.of(part()).tree()
    changed = eqx.tree_at(lambda t: t.weight, tree, jnp.zeros(3))
    assert not Flat.of(changed).arrays[0].any()
    mapped = jax.tree.map(lambda x: x, tree)
    assert Flat.of(mapped) is not Flat.of(tree)
    for again in (copy.deepcopy(tree), pickle.loads(pickle.dumps(tree))):
        assert again.weight.tolist() == [0, 1, 2]
        assert Flat.of(again).arrays[0] is again.weight


def test_a_changed_state_is_what_the_next_step_sees():
    model = ef.Linear(2, 1, bias=False, key=jax.random.key(0))
    optimizer = ef.SGD(0.0).build(steps=5)
    step = ef.make_step(lambda model, batch, key: (model(batch) ** 2).sum(), optimizer)
    state = ef.TrainState.create(model, optimizer, key=jax.random.key(1))
    batch = np.ones((1, 2), np.float32)
    state, _ = step(state, batch)
    state = eqx.tree_at(lambda s: s.model.weight, state, jnp.full((2, 1), 2.0))
    state, metrics = step(state, batch)
    assert metrics["loss"] == 16.0
    assert state.model.weight.tolist() == [[2.0], [2.0]]
