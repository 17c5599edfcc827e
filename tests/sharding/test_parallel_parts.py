"""Parts of a step that a mesh changes: microbatches, tokens of a row, tables, chunks of logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import eqxformer as ef
from eqxformer.constraints import constrain, mesh_sizes, token_shares
from eqxformer.losses import chunked
from tests.helpers.hot import drawn
from tests.sharding.meshes import placed
from tests.sharding.test_steps import collectives
from tests.training.tiny import Bigram

TOKENS = np.random.default_rng(0).integers(0, 8, (16, 9)).astype(np.int32)


def test_without_a_mesh_nothing_is_constrained():
    x = jnp.ones((2, 3))
    assert constrain(x, "seq", "dim") is x
    assert (mesh_sizes(), token_shares()) == ({}, 1)
    with placed("data=1").set():
        assert constrain(x, "seq", "dim") is x


def test_the_first_axis_of_a_batch_is_dealt_out_and_what_does_not_divide_is_whole():
    placement = placed("data=2,fsdp=2,tensor=2")

    def where(spec):
        return NamedSharding(placement.mesh, spec)

    with placement.set():
        assert token_shares() == 4
        laid = constrain(jnp.ones((4, 3, 2, 6)), "heads", "head_dim")
        assert laid.sharding.is_equivalent_to(where(P(("data", "fsdp"), None, "tensor")), 4)
        laid = constrain(jnp.ones((2, 3)), "heads")
        assert laid.sharding.is_equivalent_to(where(P("data")), 2)
        assert constrain(jnp.ones((3, 3)), "heads").sharding.is_fully_replicated
        once = jax.vmap(lambda x: constrain(x, "heads", "head_dim"))(jnp.ones((5, 4, 2, 6)))
        assert once.sharding.is_equivalent_to(where(P(None, ("data", "fsdp"), "tensor")), 4)


def trained(placement, microbatch=None):
    """One step of a model of two tables, and its program."""
    optimizer = ef.SGD(0.1).build(1)
    step = ef.make_step(ef.NextToken(), optimizer, microbatch=microbatch)
    model, batch = Bigram(vocab=8, dim=8, key=jax.random.key(0)), ef.TokenBatch(TOKENS)
    if placement is not None:
        model, batch = placement.put(model), placement.batch(batch)
    state = ef.TrainState.create(model, optimizer, key=jax.random.key(1))
    program = step.lower(state, batch).compile().as_text()
    return step(state, batch)[0].model, program


def test_rows_of_a_microbatch_are_dealt_out_to_all_devices():
    """Cut as they stand, each device would hold one microbatch and wait for the others' turns."""
    whole, _ = trained(None)
    parts, program = trained(placed("data=4"), microbatch=4)
    for one, other in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert "f32[1,8,8]" in program  # logits of one row of each microbatch, of four
    assert "f32[4,8,8]" not in program


@pytest.mark.parametrize("spelling", ["data=2,sequence=4", "sequence=2,tensor=2"])
def test_tokens_of_a_row_are_dealt_out_and_their_keys_gathered(spelling):
    config = ef.families.llama(vocab=8, dim=8, layers=1, heads=4, kv_heads=2, hidden=16)
    model, tokens = drawn(config), jnp.asarray(TOKENS[:, :8])
    placement = placed(spelling)
    with placement.set():
        program = jax.jit(lambda model, tokens: model(tokens)).lower(
            placement.put(model), placement.batch(tokens)
        )
        compiled = program.compile()
        found = compiled(placement.put(model), placement.batch(tokens))
    np.testing.assert_allclose(found, model(tokens), rtol=1e-4, atol=1e-5)
    shares = placement.sizes
    rows, heads = 16 // shares.get("data", 1), 2 // shares.get("tensor", 1)
    gathered = [s for kind, _, s in collectives(compiled.as_text()) if kind == "all-gather"]
    assert (rows, heads, 8, 2) in gathered  # keys and values of all tokens
    assert not [s for s in gathered if s[:1] == (rows,) and s[-1] in (8, 16) and len(s) == 3]


def test_chunks_of_logits_are_as_large_on_every_device_as_on_one(monkeypatch):
    monkeypatch.setattr(chunked, "LARGE", 0)
    monkeypatch.setattr(chunked, "CPU_CHUNK", 8)
    table, hidden = jax.random.normal(jax.random.key(0), (4, 8)), jnp.ones((16, 4, 4))
    targets = jnp.asarray(TOKENS[:, :4])

    def loss(table, hidden, targets):
        return ef.cross_entropy_of(hidden, lambda x: x @ table, targets).mean

    alone = jax.make_jaxpr(loss)(table, hidden, targets)
    placement = placed("data=4")
    with placement.set():
        spread = jax.make_jaxpr(loss)(table, hidden, targets)
        found = jax.jit(loss)(table, placement.batch(hidden), placement.batch(targets))
    assert ("length=8" in str(alone), "length=2" in str(spread)) == (True, True)
    np.testing.assert_allclose(found, loss(table, hidden, targets), rtol=1e-6)
