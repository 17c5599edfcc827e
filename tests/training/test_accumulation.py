"""Gradients of a batch, some rows at a time: those of the whole batch."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.training.accumulation import accumulated
from tests.helpers.compare import assert_close, same_bits
from tests.helpers.hot import cast
from tests.helpers.models import filled
from tests.training.tiny import Noisy

ROWS, SEQ = 7, 6
TOKENS = np.random.default_rng(0).integers(0, 11, (ROWS, SEQ)).astype(np.int32)
RAGGED = np.arange(SEQ) < np.array([6, 2, 5, 0, 3, 6, 4])[:, None]  # a row counts for nothing


compiled = eqx.filter_jit(accumulated)


@functools.cache
def decoder(experts=False):
    config = ef.families.gpt(vocab=11, dim=8, layers=1, heads=2, context=8)
    if experts:
        mixture = ef.Experts.Config(count=3, top=2, expert=ef.MLP.Config(hidden=8))
        config = config.edit("blocks.0", feed_forward=mixture)
    return filled(config)


@functools.cache
def shallow():
    """A model without blocks, where what they do is not asked."""
    return filled(ef.DecoderLM.Config(vocab=11, dim=8, blocks=()))


@functools.cache
def seq2seq():
    """A decoder's block, which looks at embedded sources."""
    config = ef.families.transformer(vocab=11, dim=8, layers=1, heads=2, hidden=16)
    return filled(config.edit("encoder", blocks=()))


def ravel(tree):
    """All numbers in a row: some slopes, as of a key's bias, are nothing but rounding."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


CASES = {
    "decoder": (
        decoder,
        ef.NextToken(label_smoothing=0.1, z_loss=0.01),
        ef.TokenBatch(TOKENS, RAGGED),
    ),
    "all tokens": (shallow, ef.NextToken(), ef.TokenBatch(TOKENS)),
    "pairs": (
        seq2seq,
        ef.SequenceToSequence(),
        ef.PairBatch(TOKENS, TOKENS[:, ::-1], source_valid=RAGGED, target_weights=RAGGED),
    ),
}


@functools.cache
def case_and_whole(case):
    """A model, a loss, a batch, and the loss and the slopes of all of it at once."""
    build, loss, batch = CASES[case]
    model = jax.tree.map(lambda x: jnp.asarray(0.5 * np.asarray(x)), build())  # rounds less
    whole = eqx.filter_jit(eqx.filter_value_and_grad(lambda m: loss(m, batch).mean))(model)
    return model, loss, batch, whole


# Seven rows one by one, in threes with one left over, in one part that is full, and in one that
# is not; what a batch consists of and how its tokens weigh is none of their business.
@pytest.mark.parametrize(
    ("case", "microbatch"),
    [*(("decoder", rows) for rows in (1, 3, 7)), ("pairs", 3), ("pairs", 100), ("all tokens", 3)],
)
def test_it_equals_one_large_batch(case, microbatch):
    model, loss, batch, (wanted, slopes) = case_and_whole(case)
    value, gradients = compiled(loss, model, batch, microbatch=microbatch, key=None)
    assert_close(value.mean, wanted, 1e-6)
    assert jax.tree.structure(gradients) == jax.tree.structure(slopes)
    gradients, slopes = ravel(gradients), ravel(slopes)
    assert np.linalg.norm(gradients - slopes) < 1e-6 * np.linalg.norm(slopes)


def test_a_batch_that_counts_for_nothing_has_no_gradient():
    loss, batch = CASES["decoder"][1], ef.TokenBatch(TOKENS, np.zeros_like(RAGGED))
    value, gradients = compiled(loss, decoder(), batch, microbatch=3, key=None)
    assert value.mean == 0
    assert not ravel(gradients).any()


def test_metrics_of_routers_are_means_over_tokens():
    """Of each microbatch's own balance, so only microbatches of all rows are as the whole."""
    model, batch = decoder(experts=True), ef.TokenBatch(TOKENS)
    value, _ = compiled(ef.NextToken(), model, batch, microbatch=3, key=None)
    loss = eqx.filter_jit(ef.NextToken())
    parts = [loss(model, ef.TokenBatch(TOKENS[i : i + 3])) for i in (0, 3, 6)]
    wanted = sum(parts, ef.Loss.zero()).means()
    assert set(wanted) == {"loss", "load_balance", "router_z"}
    assert_close(value.means(), wanted, 1e-6)


def test_gradients_of_a_small_type_are_summed_in_float32():
    """Of 256 equal rows, each would be lost beside the sum of the others."""
    model = cast(shallow(), jnp.bfloat16)
    one = ef.TokenBatch(TOKENS[:1])
    many = ef.TokenBatch(np.repeat(TOKENS[:1], 256, 0))
    _, wanted = compiled(ef.NextToken(), model, one, microbatch=1, key=None)
    _, found = compiled(ef.NextToken(), model, many, microbatch=1, key=None)
    assert {g.dtype for g in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}
    assert_close(found, wanted, 1e-2)


def test_each_microbatch_has_random_numbers_of_its_own():
    seen = []

    def loss(model, batch, *, key=None):
        seen.append(key)
        noise = jax.random.normal(key)
        return ef.Loss(model.sum() * noise, jnp.ones(()), {"noise": noise})

    model = jnp.ones(3)
    value, gradients = accumulated(
        loss, model, ef.TokenBatch(TOKENS), microbatch=3, key=jax.random.key(0)
    )
    draws = [float(jax.random.normal(jax.random.fold_in(jax.random.key(0), i))) for i in range(3)]
    np.testing.assert_allclose(value.metrics["noise"], sum(draws), rtol=1e-6)
    np.testing.assert_allclose(gradients, np.full(3, sum(draws) / 3), rtol=1e-6)
    assert None not in seen


def test_a_step_is_the_same_with_microbatches():
    optimizer = ef.SGD(0.1, momentum=0.9, clip=ef.ClipByNorm(0.5)).build(steps=3)
    batch = ef.TokenBatch(TOKENS, RAGGED)

    def trained(microbatch):
        state = ef.TrainState.create(shallow(), optimizer, key=jax.random.key(1))
        step = ef.make_step(ef.NextToken(), optimizer, microbatch=microbatch)
        for _ in range(3):
            state, metrics = step(state, batch)
        return state.model, metrics

    assert_close(trained(2), trained(None), 1e-5)


def test_the_trainer_passes_it_on():
    """A model with dropout learns otherwise where each microbatch draws for itself."""

    def trained(microbatch):
        trainer = ef.Trainer(
            Noisy(key=jax.random.key(0)),
            lambda step: ef.TokenBatch(TOKENS % 5),
            ef.SGD(0.1).build(1),
            1,
            key=jax.random.key(1),
            microbatch=microbatch,
        )
        return trainer.fit().model

    assert not same_bits(trained(2), trained(None))


def test_memory_is_that_of_a_microbatch():
    model, tokens = shallow(), np.zeros((256, SEQ), np.int32)

    def needed(microbatch):
        optimizer = ef.SGD(0.1).build(1)
        state = ef.TrainState.create(model, optimizer, key=jax.random.key(0))

        def run(arrays):
            whole = eqx.combine(arrays, fixed)
            return accumulated(
                ef.NextToken(), whole, ef.TokenBatch(tokens), microbatch=microbatch, key=None
            )

        arrays, fixed = eqx.partition(state.model, eqx.is_array)
        return jax.jit(run).lower(arrays).compile().memory_analysis().temp_size_in_bytes

    assert needed(16) < needed(256) / 8


def test_mistakes_are_named():
    with pytest.raises(TypeError, match="must be a `Loss`"):
        accumulated(ef.next_token_loss, decoder(), ef.TokenBatch(TOKENS), microbatch=2, key=None)
    uneven = {"tokens": TOKENS, "more": TOKENS[:3]}
    with pytest.raises(ValueError, match=r"got \(3, 6\), \(7, 6\)\."):
        accumulated(ef.SequenceToSequence(), seq2seq(), uneven, microbatch=2, key=None)
    for make in (
        lambda: ef.make_step(ef.NextToken(), ef.SGD().build(1), microbatch=0),
        lambda: ef.Trainer(
            None, lambda i: i, ef.SGD().build(1), 1, key=jax.random.key(0), microbatch=0
        ),
    ):
        with pytest.raises(ValueError, match="`microbatch` must be at least 1 row, or None; got 0"):
            make()
