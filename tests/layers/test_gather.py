"""Rows that many places look up have exact gradients in small types, and no table is widened."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.layers.gather import rows_of
from tests.helpers.compare import assert_close
from tests.helpers.hot import cast, drawn, normal

PLACES = 600  # more than the 256 equal parts at which a sum in bfloat16 ends
INDEX = jax.device_put(np.int32(np.random.default_rng(0).integers(0, 2, PLACES)))


def grouped(linear):
    stacked = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), linear)
    return lambda part, x: part.grouped(ef.Groups(jnp.sort(INDEX), 2))(x), stacked


LINEAR = drawn(ef.Linear.Config(), 1, 2)
PARTS = {
    "embedding": (lambda part, x: part(INDEX), drawn(ef.Embedding.Config(), 10, 2)),
    "positions": (
        lambda part, x: part(INDEX),
        drawn(ef.LearnedPositions.Config(length=6, offset=2), 2),
    ),
    "relative bias": (
        lambda part, x: part(jnp.zeros(1, jnp.int32), INDEX),
        drawn(ef.RelativeBias.Config(8, 20), 2),
    ),
    "experts": grouped(LINEAR),
    "quantised experts": grouped(ef.QuantisedLinear.of(LINEAR)),
}


def slopes(name, part, x):
    """The gradients of the tables; every place's part of them is of one size, and positive."""
    look = PARTS[name][0]
    return eqx.filter_grad(lambda part: look(part, x).astype(jnp.float32).sum())(part)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradients_of_tables_are_summed_in_float32(name, dtype):
    part, x = PARTS[name][1], jnp.ones((PLACES, 1))
    found = eqx.filter_jit(slopes)(name, *cast((part, x), dtype))
    assert_close(found, eqx.filter_jit(slopes)(name, part, x), float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_only_the_sums_of_a_small_table_are_wide(dtype):
    table = normal(0, 10, 3).astype(dtype)
    program = jax.make_jaxpr(lambda table: rows_of(table, INDEX))(table)
    assert "f32[10,3]" not in str(program) or dtype == jnp.float32
    backward = jax.jit(jax.grad(lambda t: rows_of(t, INDEX).sum())).lower(table).as_text()
    (scatter,) = backward.split('"stablehlo.scatter"')[1:]
    assert "-> tensor<10x3xf32>" in scatter
    assert ("bf16" in backward) == (dtype == jnp.bfloat16)


def test_rows_have_their_derivatives_forwards_and_under_vmap():
    table, change = (normal(i, 2, 10, 3).astype(jnp.bfloat16) for i in (0, 1))
    index = jnp.array([0, 3, 3])

    @jax.jit
    def every(table, change):
        look = jax.vmap(lambda table: rows_of(table, index))
        return jax.jvp(look, (table,), (change,))

    value, moved = every(table, change)
    assert (value == table[:, index]).all()
    assert (moved == change[:, index]).all()


def test_an_id_outside_a_small_table_is_nan_and_has_no_gradient():
    table = ef.Embedding(10, 2, key=jax.random.key(0))
    table = cast(table, jnp.bfloat16)
    ids = jnp.array([3, 10, -1])
    assert np.isnan(jax.jit(table.__call__)(ids)).tolist() == [[False] * 2, [True] * 2, [True] * 2]
    loss = lambda table, ids: jnp.nansum(table(ids).astype(jnp.float32))  # noqa: E731
    found = eqx.filter_jit(eqx.filter_grad(loss))(table, ids)
    assert np.flatnonzero(np.asarray(found.weight, np.float32).any(-1)).tolist() == [3]
