"""Training that breaks down says where, if it was asked to watch."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.training.accumulation import pieces


class Chain(eqx.Module):
    """Logits of the next token from this one, through two parts."""

    table: ef.Embedding
    linear: ef.Linear

    def __call__(self, tokens, *, key=None):
        return self.linear(self.table(tokens))


@pytest.fixture(scope="module")
def model():
    """A model of which the token 4 has a vector that overflows in a product."""
    weight = jax.random.normal(jax.random.key(0), (5, 3)).at[4].set(2e38)
    table = eqx.tree_at(lambda t: t.weight, ef.Embedding(5, 3, key=jax.random.key(1)), weight)
    linear = ef.Linear(3, 5, key=jax.random.key(2))
    return Chain(table, eqx.tree_at(lambda x: x.weight, linear, jnp.full((3, 5), 2.0)))


def trained(model, bad_step=None, **options):
    """The state after six steps; in one of them, counted from 1, a row has the token 4."""

    def batch(step):
        tokens = np.random.default_rng(step).integers(0, 4, (3, 6)).astype(np.int32)
        tokens[1, 2] = 4 if step + 1 == bad_step else 0
        return ef.TokenBatch(tokens)

    optimizer = ef.SGD(0.1).build(steps=6)
    return ef.Trainer(model, batch, optimizer, 6, key=jax.random.key(3), **options).fit()


@pytest.mark.parametrize(("microbatch", "rows"), [(None, 3), (1, 1)])
def test_a_run_that_breaks_down_names_the_step_and_the_first_broken_value(model, microbatch, rows):
    with pytest.raises(ef.NonFiniteLoss) as error:
        trained(model, bad_step=4, watch=ef.Watch(), microbatch=microbatch)
    assert error.value.step == 4
    assert f"First broken: output of linear, float32[{rows}, 5, 5]: 5 inf" in str(error.value)


def test_a_run_that_is_watched_makes_the_same_steps(model):
    one, other = (trained(model, watch=watch) for watch in (None, ef.Watch()))
    assert eqx.tree_equal(one.model, other.model)


def test_pieces_are_the_microbatches_of_a_step_with_their_keys():
    batch, key = ef.TokenBatch(jnp.arange(15).reshape(5, 3)), jax.random.key(0)
    found = list(pieces(batch, 2, key))
    assert [part.tokens[:, 0].tolist() for part, _ in found] == [[0, 3], [6, 9], [12]]
    with jax.debug_key_reuse(False):
        for number, (_, own) in enumerate(found):
            assert own == jax.random.fold_in(key, number)
    assert [(part is batch, own) for part, own in pieces(batch, None, None)] == [(True, None)]
