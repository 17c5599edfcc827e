"""Trees put together from their arrays are those that JAX would make."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.training.assembly import Assembly


class Pair(NamedTuple):
    first: Any
    second: Any


class Thing(eqx.Module):
    weight: Any
    inner: Any = None
    name: str = eqx.field(static=True, default="thing")

    def double(self):
        return 2 * self.weight


def taken_apart(tree):
    leaves, structure = jax.tree.flatten(tree)
    return structure, [None if eqx.is_array(leaf) else leaf for leaf in leaves], leaves


def assert_same(made, tree):
    assert jax.tree.structure(made) == jax.tree.structure(tree)
    assert all(a is b for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(tree), strict=True))


@functools.cache
def trees():
    one, two = jnp.ones(2), jnp.zeros((2, 3))
    state = ef.TrainState.create(
        ef.families.gpt(vocab=7, dim=4, layers=2, heads=2, context=4).build(key=jax.random.key(0)),
        ef.AdamW(1e-3).build(steps=5),
        key=jax.random.key(1),
    )
    return {
        "an array": one,
        "tuples": (one, (), (None, "word", (two, 3.0)), ((), (None,))),
        "named tuples": Pair(Pair(one, "a"), (Pair(None, 1), two)),
        "modules": Thing(one, (Thing(3.0), Thing(two, Pair(Thing(one, name="x"), None)))),
        "a state": state,
    }


@pytest.mark.parametrize("name", ["an array", "tuples", "named tuples", "modules", "a state"])
def test_a_tree_put_together_is_the_one_that_jax_makes(name):
    tree = trees()[name]
    structure, fixed, leaves = taken_apart(tree)
    arrays = [leaf for leaf in leaves if eqx.is_array(leaf)]
    put_together = Assembly(structure, fixed)
    assert_same(put_together(arrays), tree)
    others = [np.zeros(2) for _ in arrays]  # again, with other arrays
    made = put_together(others)
    assert all(
        a is b for a, b in zip(filter(eqx.is_array, jax.tree.leaves(made)), others, strict=True)
    )
    assert_same(put_together(arrays), tree)


def test_modules_put_together_are_whole():
    structure, fixed, _ = taken_apart(Thing(jnp.ones(2), Thing(1.0), name="other"))
    made = Assembly(structure, fixed)([jnp.full(2, 3.0)])
    assert made.double().tolist() == [6.0, 6.0]
    assert (made.name, made.inner.name, made.inner.weight) == ("other", "thing", 1.0)
    with pytest.raises(AttributeError):
        made.weight = 1


@pytest.mark.parametrize("tree", [[1.0], {"a": 1.0}, (1.0, [2.0])], ids=["list", "dict", "inside"])
def test_what_is_made_of_other_nodes_is_left_to_jax(tree):
    structure = jax.tree.structure(tree)
    with pytest.raises(TypeError, match="A tree of tuples and modules was expected"):
        Assembly(structure, [None] * structure.num_leaves)


def test_a_tree_without_arrays_is_left_to_jax():
    with pytest.raises(TypeError, match="was expected"):
        Assembly(jax.tree.structure((1, 2)), [1, 2])
