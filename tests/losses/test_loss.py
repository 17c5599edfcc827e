import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.data.batches import PairBatch, TokenBatch
from eqxformer.layers.feed_forward import RouterLosses
from eqxformer.losses.cross_entropy import Loss
from eqxformer.losses.cross_entropy import cross_entropy as eager_cross_entropy
from eqxformer.losses.tokens import (
    NextToken,
    SequenceToSequence,
    next_token_loss,
    sequence_to_sequence_loss,
)
from tests.helpers.hot import normal
from tests.training.tiny import Bigram

cross_entropy = eqx.filter_jit(eager_cross_entropy)
FLOAT32_SUM = {"rtol": 1e-5, "atol": 1e-6}  # a few roundings of sums over tens of numbers


def reference(logits, targets, weights, label_smoothing=0.0, z_loss=0.0):
    """The loss in float64, one position at a time, from the smoothed target distribution."""
    total, vocab = 0.0, logits.shape[-1]
    for index in np.ndindex(targets.shape):
        scores = logits[index].astype(np.float64)
        log_sum = np.log(np.sum(np.exp(scores)))
        wanted = np.full(vocab, label_smoothing / vocab)
        wanted[targets[index]] += 1.0 - label_smoothing
        nats = -np.sum(wanted * (scores - log_sum)) + z_loss * log_sum**2
        total += float(weights[index]) * nats
    return total, float(np.sum(weights))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1, 4)])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.01}])
def test_cross_entropy_equals_the_sum_over_positions(shape, options):
    random = np.random.default_rng(0)
    logits = (3 * random.normal(size=(*shape, 7))).astype(np.float32)
    targets = random.integers(0, 7, shape)
    weights = random.uniform(0.5, 2.0, shape).astype(np.float32)
    loss = cross_entropy(
        jnp.asarray(logits), jnp.asarray(targets), weights=jnp.asarray(weights), **options
    )
    total, weight = reference(logits, targets, weights, **options)
    np.testing.assert_allclose(loss.total, total, **FLOAT32_SUM)
    np.testing.assert_allclose(loss.weight, weight, **FLOAT32_SUM)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    loss = cross_entropy(jnp.zeros((2, 3, 11)), jnp.zeros((2, 3), jnp.int32))
    np.testing.assert_allclose(loss.mean, np.log(11), **FLOAT32_SUM)


def test_gradient_is_softmax_minus_one_hot_times_the_weight():
    logits = np.asarray(normal(0, 4, 5))
    targets, weights = np.array([0, 4, 2, 2]), np.float32([1.0, 0.5, 0.0, 2.0])

    @jax.jit
    @jax.grad
    def slope(x):
        return cross_entropy(x, jnp.asarray(targets), weights=jnp.asarray(weights)).total

    gradient, powers = slope(logits), np.exp(logits)
    expected = weights[:, None] * (powers / powers.sum(-1, keepdims=True) - np.eye(5)[targets])
    np.testing.assert_allclose(gradient, expected, **FLOAT32_SUM)


@jax.jit
@jax.value_and_grad
def mean(logits, targets, weights):
    return cross_entropy(logits, targets, weights=weights, label_smoothing=0.1, z_loss=0.01).mean


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_stands_at_masked_positions_reaches_neither_loss_nor_gradient(poison):
    clean = np.asarray(normal(0, 2, 3, 5))
    dirty = clean.copy()
    dirty[0, 1] = poison
    targets, weights = np.array([[1, -100, 2], [0, 3, 4]]), np.array([[1, 0, 1], [1, 1, 1]]) != 0
    value, gradient = mean(dirty, targets, weights)
    expected, expected_gradient = mean(clean, targets, weights)
    assert value == expected
    np.testing.assert_array_equal(gradient, expected_gradient)
    assert not gradient[0, 1].any()


def test_a_fully_masked_batch_has_loss_zero_and_zero_gradients():
    logits = np.full((2, 3, 5), np.nan, np.float32)
    targets, weights = jnp.asarray(np.full((2, 3), -1)), jnp.asarray(np.zeros((2, 3), np.float32))

    @jax.jit
    @jax.value_and_grad
    def plain(logits):
        return cross_entropy(logits, targets, weights=weights).mean

    value, gradient = plain(logits)
    assert value == 0.0
    assert not gradient.any()


def test_losses_of_unequal_batches_add_up_to_the_mean_over_all_tokens():
    logits, targets = np.asarray(normal(0, 9, 5)), np.arange(9, dtype=np.int32) % 5
    parts = [cross_entropy(logits[some], targets[some]) for some in (slice(0, 2), slice(2, 9))]
    together = cross_entropy(logits, targets)
    np.testing.assert_allclose(sum(parts, Loss.zero()).mean, together.mean, **FLOAT32_SUM)


def test_half_precision_logits_are_summed_in_float32():
    logits = jnp.zeros((1, 4096), jnp.bfloat16)
    loss = cross_entropy(logits, jnp.zeros(1, jnp.int32))
    assert loss.total.dtype == jnp.float32
    np.testing.assert_allclose(loss.total, np.log(4096), rtol=1e-6)


@pytest.mark.parametrize("wrong", [-1, 5])
def test_a_target_outside_the_vocabulary_is_an_error_or_nan_never_another_token(wrong):
    logits, targets = jnp.zeros((3, 5)), jnp.array([0, wrong, 1])
    with pytest.raises(ValueError, match=rf"ids from 0 to 4.*got {wrong}"):
        eager_cross_entropy(logits, targets)
    assert jnp.isnan(cross_entropy(logits, targets).total)


def scored(tokens, *, key=None):
    """A model to which all of four ids are alike."""
    return jnp.zeros((*tokens.shape, 4))


def of_one_number(tokens, *, key=None):
    return jnp.ones((tokens.shape[0], 1))


def with_weights(batch, weights, field="weights"):
    """A batch with these weights, whatever their shape; shape checks never see them."""
    return eqx.tree_at(lambda b: getattr(b, field), batch, weights, is_leaf=lambda x: x is None)


ROWS, SCORES = jnp.arange(10).reshape(2, 5) % 4, jnp.zeros((2, 5, 4))
ONE_A_ROW, SHARED = jnp.ones((2, 1)), jnp.arange(5) >= 3
MISSHAPEN = {
    "cross_entropy": lambda: ef.cross_entropy(SCORES, ROWS, weights=ONE_A_ROW),
    "in chunks": lambda: ef.cross_entropy_of(SCORES, lambda x: x, ROWS, weights=ONE_A_ROW, chunk=2),
    "tokens": lambda: NextToken()(scored, with_weights(TokenBatch(ROWS), SHARED)),
    "documents": lambda: with_weights(TokenBatch(ROWS, None, ROWS), SHARED).target_weights(),
    "targets of a source": lambda: SequenceToSequence().question(
        with_weights(PairBatch(ROWS, ROWS), ONE_A_ROW, "target_weights")
    ),
    "behind a prefix": lambda: with_weights(
        ef.PrefixBatch(ROWS, jnp.array([1, 2])), SHARED
    ).target_weights(),
    "classes": lambda: ef.TokenClassification()(
        scored, with_weights(ef.LabelledBatch(ROWS, ROWS), ONE_A_ROW)
    ),
    "numbers": lambda: ef.SequenceRegression()(
        of_one_number, with_weights(ef.LabelledBatch(ROWS, jnp.zeros((2, 1))), jnp.ones(2))
    ),
    "scores": lambda: ef.TokenScores()(scored, with_weights(TokenBatch(ROWS), SHARED)),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", MISSHAPEN)
def test_weights_of_another_shape_are_refused_and_never_broadcast(case):
    """The total would be of broadcast weights and the divisor of the few that were given."""
    with pytest.raises(ValueError, match=r"Weights must have the shape \(2, [15]\), one for each"):
        MISSHAPEN[case]()


@pytest.mark.usefixtures("unchecked")
def test_weights_of_a_question_of_ones_own_are_refused_as_well():
    class Halved(NextToken):
        def question(self, batch, /):
            asked = super().question(batch)
            return asked._replace(weights=asked.weights[:1])

    class Turned(NextToken):
        def question(self, batch, /):
            asked = super().question(batch)
            return asked._replace(weights=asked.weights.T)

    for loss in (Halved(), ef.TokenScores(Halved()), Turned(), ef.TokenScores(Turned())):
        with pytest.raises(ValueError, match=r"Weights must have the shape \(2, 4\)"):
            loss(scored, TokenBatch(ROWS))


@pytest.mark.usefixtures("unchecked")
def test_targets_of_another_shape_are_refused_and_never_broadcast():
    with pytest.raises(ValueError, match=r"`targets` must have the shape \(2, 5\).*got \(5,\)"):
        ef.cross_entropy(jnp.zeros((2, 5, 4)), jnp.arange(5) % 4)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_label_smoothing_must_be_a_share(share):
    with pytest.raises(ValueError, match="label_smoothing"):
        cross_entropy(jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32), label_smoothing=share)
    with pytest.raises(ValueError, match="label_smoothing"):
        NextToken(label_smoothing=share)


def test_next_token_loss_asks_each_token_for_the_one_that_follows():
    tokens = np.array([[0, 1, 2, 3], [4, 3, 2, 1]])

    def knows_the_successor(inputs, *, key=None):
        known = jnp.array([1, 2, 3, 2, 3])  # but 2 -> 1 in the second row it gets wrong
        return 100.0 * jax.nn.one_hot(known[inputs], 5)

    loss = eqx.filter_jit(lambda batch: next_token_loss(knows_the_successor, batch))
    assert loss(TokenBatch(tokens, np.float32([[1, 1, 1, 1], [1, 1, 1, 0]]))) == 0.0
    wrong = loss(TokenBatch(tokens))
    np.testing.assert_allclose(wrong, 100.0 / 6, **FLOAT32_SUM)


def test_next_token_loss_is_a_scalar_to_differentiate():
    model = Bigram(key=jax.random.key(0))
    batch = TokenBatch(np.arange(10).reshape(2, 5) % 5)
    loss, gradients = eqx.filter_jit(eqx.filter_value_and_grad(next_token_loss))(model, batch)
    assert loss.shape == ()
    assert jnp.abs(gradients.embedding).sum() > 0


def test_a_sequence_of_one_token_has_nothing_to_predict():
    with pytest.raises(ValueError, match="at least 2 tokens"):
        next_token_loss(Bigram(key=jax.random.key(0)), TokenBatch(jnp.zeros((2, 1), jnp.int32)))


class WithRouters(eqx.Module):
    """A model whose parts have routers, as a mixture of experts does."""

    inner: Bigram

    def run(self, tokens, *, key=None):
        losses = RouterLosses(load_balance=jnp.float32(2.0), z=jnp.float32(3.0))
        return self.inner.embedding[tokens], None, losses

    def logits(self, hidden):
        return hidden @ self.inner.output


def test_losses_of_routers_are_scaled_added_to_the_mean_and_reported():
    inner = Bigram(key=jax.random.key(0))
    batch = TokenBatch(np.arange(12).reshape(3, 4) % 5)
    loss = eqx.filter_jit(NextToken(load_balance=0.1, router_z=0.01))
    plain, routed = loss(inner, batch), loss(WithRouters(inner), batch)
    np.testing.assert_allclose(routed.mean, plain.mean + 0.2 + 0.03, **FLOAT32_SUM)
    np.testing.assert_allclose((routed + routed).means()["load_balance"], 0.2, **FLOAT32_SUM)
    np.testing.assert_allclose((routed + routed).means()["router_z"], 0.03, **FLOAT32_SUM)


def test_sequence_to_sequence_loss_shifts_the_target_and_passes_the_source_on():
    seen = {}

    def model(source, target, *, source_mask, key):
        seen.update(source=source, target=target, mask=source_mask)
        return jnp.zeros((*target.shape, 6))

    batch = PairBatch(np.array([[1, 2, 3]]), np.array([[5, 4, 0, 0]]))
    loss, given = jax.jit(lambda: (sequence_to_sequence_loss(model, batch), seen))()
    np.testing.assert_allclose(loss, np.log(6), **FLOAT32_SUM)
    assert given["target"].tolist() == [[5, 4, 0]]
    assert given["source"].tolist() == [[1, 2, 3]]
    assert given["mask"] is None


def test_target_weights_say_which_tokens_of_an_answer_count():
    def model(source, target, *, source_mask, key):
        scores = jnp.zeros((*target.shape, 4))
        return scores.at[..., 2].set(50.0)  # always answers 2

    loss = eqx.filter_jit(lambda batch: SequenceToSequence()(model, batch))
    source, target = np.array([[1]]), np.array([[1, 2, 3, 3]])
    weights = np.array([[True, True, False, False]])
    found = loss(PairBatch(source, target, target_weights=weights))
    assert found.mean == 0.0
    assert found.weight == 1.0
    np.testing.assert_allclose(loss(PairBatch(source, target)).mean, 100 / 3, **FLOAT32_SUM)


@pytest.mark.parametrize(("kind", "vocab"), [(np.int8, 128), (np.int8, 300), (np.int16, 40_000)])
def test_targets_in_a_type_that_does_not_hold_the_vocabulary_are_ids_all_the_same(kind, vocab):
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, vocab)), jnp.float32)
    targets = np.array([[1, 7, 100], [0, 30, 127]])
    expected = cross_entropy(logits, jnp.asarray(targets, jnp.int32)).mean
    for find in (cross_entropy, jax.jit(cross_entropy)):
        found = find(logits, jnp.asarray(targets.astype(kind))).mean
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    narrow = jnp.asarray(targets.astype(kind))
    chunked = ef.cross_entropy_of(logits, lambda x: x, narrow, chunk=2).mean
    np.testing.assert_allclose(chunked, expected, rtol=1e-6)
