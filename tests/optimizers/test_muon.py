"""Muon: which parameters are matrices, and what becomes of their gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.blocks import Scanned
from eqxformer.optimizers.muon import orthogonalised
from eqxformer.optimizers.trainable import trainable
from tests.helpers.compare import assert_close
from tests.helpers.hot import normal


def named(tree):
    """Leaves by path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def built(config):
    return trainable(config.build(key=jax.random.key(0)))


def test_matrices_inside_the_model_are_orthogonalised_and_nothing_else():
    mixture = ef.Experts.Config(count=3, top=2, expert=ef.MLP.Config(hidden=8))
    config = ef.families.gpt(vocab=11, dim=8, layers=2, heads=2, context=8)
    found = named(orthogonalised(built(config.edit("blocks.1", feed_forward=mixture))))
    for path, inside in found.items():
        other = path.startswith("embedding") or ".router." in path or "norm" in path
        assert inside == (path.endswith("weight") and not other), path
    assert sum(found.values()) > 10
    scanned = named(orthogonalised(built(config.edit(layout=Scanned()))))
    assert sum(scanned.values()) == 6  # each for two layers
    untied = ef.families.llama(vocab=11, dim=8, layers=1, heads=2, hidden=16)
    found = named(orthogonalised(built(untied)))
    assert not found["head.linear.weight"]


def iterated(matrix):
    """Five Newton-Schulz steps in NumPy."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / np.linalg.norm(matrix)
    turned = x.shape[0] > x.shape[1]
    x = x.T if turned else x
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if turned else x


@pytest.mark.parametrize(("into", "out"), [(4, 9), (9, 4)])
def test_a_matrix_takes_orthogonal_steps(into, out):
    rate, beta, decay, steps = 0.1, 0.9, 0.2, 3
    linear = ef.Linear(into, out, key=jax.random.key(0))
    gradients = [normal(i, into, out) for i in range(steps)]
    optimizer = ef.Muon(rate, momentum=beta, weight_decay=decay, others=ef.SGD(0.5)).build(steps)
    parameters, memory = linear, optimizer.init(linear)
    expected, mean = np.asarray(linear.weight), 0.0
    for number, gradient in enumerate(gradients, 1):
        whole = eqx.tree_at(lambda m: (m.weight, m.bias), linear, (gradient, jnp.ones(out)))
        with jax.numpy_dtype_promotion("standard"):
            changes, memory = optimizer.update(whole, memory, parameters)
        parameters = eqx.apply_updates(parameters, changes)
        mean = beta * mean + (1 - beta) * np.asarray(gradient)
        nesterov = beta * mean / (1 - beta ** (number + 1)) + (1 - beta) * np.asarray(gradient) / (
            1 - beta**number
        )
        step = iterated(nesterov) * max(1, out / into) ** 0.5
        expected = expected - rate * (step + decay * expected)
    assert_close(parameters.weight, expected, 1e-4)
    assert_close(parameters.bias, np.full(out, -0.5 * steps), 1e-6)


def test_stacked_matrices_are_each_a_matrix():
    config = ef.families.gpt(vocab=11, dim=8, layers=2, heads=2, context=8)
    single = built(config)
    stacked = trainable(
        ef.rebuild(config.build(key=jax.random.key(0)), config.edit(layout=Scanned()))
    )

    def stepped(parameters):
        optimizer = ef.Muon(0.1).build(1)
        gradients = jax.tree.map(lambda x: jnp.sin(9 * x), parameters)
        with jax.numpy_dtype_promotion("standard"):
            changes, _ = optimizer.update(gradients, optimizer.init(parameters), parameters)
        return eqx.apply_updates(parameters, changes)

    one, other = stepped(single), stepped(stacked)
    want = jnp.stack([block.feed_forward.up.weight for block in one.blocks.groups])
    assert_close(other.blocks.groups[0].feed_forward.up.weight, want, 1e-5)


def test_it_learns_a_cycle_of_tokens():
    config = ef.families.gpt(vocab=5, dim=16, layers=2, heads=2, context=8)
    optimizer = ef.Muon(0.02, others=ef.AdamW(1e-2)).build(40)
    model = config.build(key=jax.random.key(0))
    state = ef.TrainState.create(model, optimizer, key=jax.random.key(1))
    step = ef.make_step(ef.NextToken(), optimizer)
    for _ in range(40):
        state, metrics = step(state, ef.TokenBatch(np.arange(18, dtype=np.int32).reshape(2, 9) % 5))
    assert metrics["loss"] < 0.1


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="`momentum` must be at least 0 and below 1; got 1"):
        ef.Muon(momentum=1.0)
    with pytest.raises(ValueError, match="`weight_decay` must not be negative; got -1"):
        ef.Muon(weight_decay=-1.0)


def test_gains_for_each_head_are_no_matrices():
    norm = {"qk_norm": ef.RMSNorm.Config(), "qk_norm_over": "each_head"}
    config = ef.families.gpt(vocab=11, dim=8, layers=1, heads=2, context=8)
    found = named(orthogonalised(built(config.edit("blocks.*.attention", **norm))))
    assert found["blocks.groups.0.attention.query.weight"]
    assert not found["blocks.groups.0.attention.query_norm.weight"]


def test_averages_of_the_rest_alone_are_refused():
    with pytest.raises(ValueError, match=r"put it round all: `Averaged\(Muon"):
        ef.Muon(others=ef.Averaged(ef.AdamW()))
