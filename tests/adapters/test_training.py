"""Only adapters are trained: memory, gradients and updates are for them alone."""

import collections

import equinox as eqx
import jax
import jax.extend
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec

import eqxformer as ef
from tests.adapters.made import ADAPTERS, KINDS, SMALL, adapted, plain
from tests.helpers.compare import same_bits
from tests.helpers.hot import cast
from tests.helpers.models import block, close, decoder, filled, logits, tokens
from tests.sharding.meshes import placed, where


def size(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array)))


def test_steps_change_adapters_alone_and_the_optimizer_remembers_nothing_else():
    """Of both kinds, on int8 weights and on others."""
    config = SMALL.edit(blocks=SMALL.blocks[:1])
    base = ef.quantise(filled(config), to=("**.feed_forward.up", "**.query"))
    start = adapted(
        adapted(base, KINDS["LoRA"], "**.query"), KINDS["DoRA"], "blocks.*.feed_forward"
    )
    optimizer = ef.AdamW(1e-2).build(steps=3)
    state = ef.TrainState.create(start, optimizer, key=jax.random.key(0), trains=ADAPTERS)
    assert size(state.optimizer) <= 2 * size(ADAPTERS.of(start)) + 64  # and counts of steps
    step = ef.make_step(ef.next_token_loss, optimizer)
    batch, losses = ef.TokenBatch(tokens(4, 9)), []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[1] < losses[0]
    assert same_bits(ef.without_adapters(state.model), base)
    before, after = ef.adapters_of(start), ef.adapters_of(state.model)
    for path, old in before.items():
        for one, other in zip(jax.tree.leaves(old), jax.tree.leaves(after[path]), strict=True):
            assert bool((one != other).any()), path


def test_frozen_weights_stay_in_the_type_they_have():
    start = adapted(cast(plain(), jnp.bfloat16), KINDS["LoRA"], "**.query")
    state = ef.TrainState.create(start, optax.sgd(0.1), key=jax.random.key(0), trains=ADAPTERS)
    assert same_bits(state.model, start)
    assert state.model.blocks[0].attention.query.lora.up.weight.dtype == jnp.float32


def test_a_mesh_cuts_adapters_and_int8_weights_by_their_axis_words():
    feed_forward = ef.MLP.Config(hidden=8)
    config = decoder(block({"heads": 4}, feed_forward=feed_forward), dim=16).edit(vocab=16)
    model = adapted(ef.quantise(filled(config), to="**.query"), KINDS["LoRA"], "**.query")
    placement = ef.Placement(ef.make_mesh("fsdp=4,tensor=2"))
    ids = tokens(8, 3)
    close(logits(placement.put(model), placement.batch(ids)), logits(model, ids))
    query = placement.put(model).blocks[0].attention.query
    assert query.base.weight.sharding.spec == PartitionSpec("fsdp", "tensor")
    assert query.base.weight.dtype == jnp.int8
    assert query.lora.down.weight.sharding.spec == PartitionSpec("fsdp")
    assert query.lora.up.weight.sharding.spec == PartitionSpec(None, ("tensor", "fsdp"))


LLAMA = ef.families.llama(vocab=16, dim=8, layers=3, heads=4, kv_heads=2, hidden=24)


def with_new_adapters(base, folder):
    """Just added, the second maps still zero."""
    return ef.add_lora(base, ef.LoRA(rank=2), to="**.query", key=jax.random.key(1))


def with_loaded_adapters(base, folder):
    """Loaded, with a head and norms that were saved whole."""
    if not folder.exists():
        other = filled(LLAMA, seed=5)
        model = adapted(other, KINDS["LoRA"], "**.query")
        ef.save_adapters(model, folder, whole=("head", "**.pre_norm", "norm"))
    return ef.load_adapters(base, folder)


@pytest.mark.parametrize("change", [with_new_adapters, with_loaded_adapters])
def test_adapters_that_a_model_on_a_mesh_gets_train_as_on_one_device(change, tmp_path):
    config = LLAMA.edit(layout=ef.Scanned())
    placement = placed("fsdp=2,tensor=2")
    optimizer = ef.AdamW(3e-2, epsilon=1e-2).build(steps=3)
    step, batch = ef.make_step(ef.NextToken(), optimizer), ef.TokenBatch(tokens(4, 9) % 16)

    def run(base, batch):
        model = change(base, tmp_path / "adapters")
        state = ef.TrainState.create(model, optimizer, key=jax.random.key(2), trains=ADAPTERS)
        lies, losses = where(state), []
        for _ in range(3):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
        assert where(state) == lies
        return model, state, losses

    base = ef.rebuild(filled(LLAMA), config)
    _, alone, expected = run(base, batch)
    model, spread, losses = run(placement.put(base), placement.batch(batch))
    assert losses[2] < losses[0]
    close(jnp.array(losses), jnp.array(expected), 1e-5)
    for one, other in zip(*map(jax.tree.leaves, (spread.model, alone.model)), strict=True):
        close(one, other, 1e-5)
    kept = ef.without_adapters(model)
    assert where(kept) == where(placement.put(base))
    assert {sharding.mesh for sharding in where(spread)} == {placement.mesh}


def products(jaxpr):
    """The shapes of what the matrix products of a program give."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.outvars[0].aval.shape
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize(("kind", "forward"), [("LoRA", 0), ("DoRA", 1)])
def test_no_gradient_of_a_frozen_weight_is_computed(kind, forward):
    """`DoRA` multiplies `down @ up` once, which has the shape of the weight."""
    mlp = adapted(ef.MLP(5, hidden=7, key=jax.random.key(0)), KINDS[kind])

    def shapes(trains):
        trained, rest = eqx.partition(mlp, trains.mask(mlp))

        def loss(trained):
            return eqx.combine(trained, rest)(jnp.ones((3, 5))).sum()

        program = eqx.filter_make_jaxpr(eqx.filter_grad(loss))(trained)[0]
        return collections.Counter(products(program.jaxpr))

    weight_of_down = (7, 5)
    assert shapes(ef.Trainable())[weight_of_down] > forward
    assert shapes(ADAPTERS)[weight_of_down] == forward
