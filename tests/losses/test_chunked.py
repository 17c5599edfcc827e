"""Cross-entropy in chunks is the plain form, in value and in every derivative."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.losses import chunked
from tests.helpers.compare import assert_close
from tests.helpers.compiling import compilations
from tests.helpers.hot import drawn
from tests.helpers.models import decoder, filled, tokens
from tests.helpers.programs import primitives

VOCAB, DIM = 11, 6
TABLE = drawn(ef.Embedding.Config(), VOCAB, DIM, seed=0)
NARROW = drawn(ef.Embedding.Config(), VOCAB, 4, seed=1)
LINEAR = drawn(ef.Linear.Config(), DIM, VOCAB, seed=4)
TIED = ef.TiedHead.Config(bias=True, softcap=2.0, scale=3.0, project=ef.Linear.Config())


class Head(eqx.Module):
    """A head with the table it reads, as a model has them."""

    head: ef.TokenHead
    table: ef.Embedding

    def __call__(self, x):
        return self.head(x, self.table)


HEADS = {
    "a tied table": TABLE.attend,
    "scale, bound, bias and projection": Head(drawn(TIED, DIM, VOCAB, width=4, seed=3), NARROW),
    "a layer before the table": Head(drawn(ef.MaskedLMHead.Config(), DIM, VOCAB, seed=2), TABLE),
}
ALL = {"label_smoothing": 0.2, "z_loss": 0.1}
OPTIONS = [{}, {"label_smoothing": 0.1}, {"z_loss": 0.01}, ALL]
ROUNDING = 2e-6  # of the largest number


def numbers(*batch):
    random = np.random.default_rng(0)
    hidden = np.float32(random.standard_normal((*batch, DIM)))
    targets = np.int32(random.integers(0, VOCAB, batch))
    weights = np.float32(random.uniform(0.5, 2.0, batch))
    return tuple(map(jax.device_put, (hidden, targets, weights)))


def plain(hidden, head, targets, weights, **options):
    return ef.cross_entropy(head(hidden), targets, weights=weights, **options).mean


def ours(hidden, head, targets, weights, *, chunk=2, **options):
    options = {**options, "chunk": chunk}
    return ef.cross_entropy_of(hidden, head, targets, weights=weights, **options).mean


@eqx.filter_jit
def slopes(form, head, hidden, targets, weights, options):
    """Value and gradients, for hidden states, head and weights."""

    def value(arrays):
        hidden, head, weights = arrays
        return form(hidden, head, targets, weights, **options)

    return eqx.filter_value_and_grad(value)((hidden, head, weights))


def both(head, hidden, targets, weights, chunk=4, **options):
    """What `slopes` gives of both forms."""
    given = (head, hidden, targets, weights)
    return slopes(ours, *given, {**options, "chunk": chunk}), slopes(plain, *given, options)


@pytest.mark.parametrize("options", OPTIONS)
def test_chunks_give_the_value_and_gradients_of_the_plain_form(options):
    ours, plain = both(LINEAR, *numbers(2, 6), **options)
    assert_close(ours, plain, ROUNDING)


@pytest.mark.parametrize("head", HEADS)
def test_chunks_give_the_gradients_of_any_head(head):
    ours, plain = both(HEADS[head], *numbers(2, 6), **ALL)
    assert_close(ours, plain, ROUNDING)


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_chunks_of_any_length_do_even_where_tokens_are_left_over(chunk):
    ours, plain = both(LINEAR, *numbers(13), chunk=chunk)
    assert_close(ours, plain, ROUNDING)


def test_arrays_that_a_function_closes_over_get_their_gradients():
    hidden, targets, weights = numbers(3, 4)

    def loss(weight, form):
        return form(hidden, lambda x: jnp.tanh(x @ weight), targets, weights)

    weight = jax.device_put(np.tile(np.arange(VOCAB, dtype=np.float32), (DIM, 1)))
    expected = jax.jit(jax.value_and_grad(lambda w: loss(w, plain)))(weight)
    found = jax.value_and_grad(lambda w: loss(w, ours))
    for each in (found, jax.jit(found)):
        assert_close(each(weight), expected, ROUNDING)


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_at_padding_has_no_influence_not_even_as_nan(side):
    hidden, targets, weights = numbers(2, 6)
    padding = np.s_[1, :3] if side == "left" else np.s_[1, 3:]
    weights = weights.at[padding].set(0.0)

    @jax.jit
    @jax.value_and_grad
    def loss(arrays, targets):
        return ours(arrays[0], arrays[1], targets, weights, **ALL)

    value, gradients = loss((hidden.at[padding].set(jnp.nan), LINEAR), targets.at[padding].set(-9))
    expected, clean = loss((hidden, LINEAR), targets)
    assert value == expected
    assert_close(gradients, clean, 0.0)
    assert not gradients[0][padding].any()


def test_logits_that_are_infinite_at_padding_have_no_influence():
    hidden, targets, weights = numbers(8)
    weights, targets = weights.at[2].set(0.0), jnp.where(targets == 3, 4, targets).at[2].set(3)
    banned = LINEAR.bias.at[3].set(-jnp.inf)
    head = eqx.tree_at(lambda h: h.bias, LINEAR, banned)
    ours, plain = both(head, hidden, targets, weights)
    assert np.isfinite(ours[0])
    assert_close(ours, plain, ROUNDING)


def test_a_batch_without_weight_costs_nothing():
    hidden, targets, weights = numbers(8)
    (value, gradients), _ = both(TABLE.attend, jnp.full_like(hidden, jnp.nan), targets, weights * 0)
    assert value == 0.0
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients[:2]))


@pytest.mark.parametrize("wrong", [-1, VOCAB])
def test_a_target_outside_the_vocabulary_is_an_error_or_nan(wrong):
    hidden, targets, _ = numbers(8)
    targets = targets.at[5].set(wrong)
    with pytest.raises(ValueError, match=rf"ids from 0 to 10.*got {wrong}"):
        ef.cross_entropy_of(hidden, TABLE.attend, targets, chunk=3)
    loss = jax.jit(lambda t: ef.cross_entropy_of(hidden, TABLE.attend, t, chunk=3).total)
    assert jnp.isnan(loss(targets))


def test_small_types_are_summed_in_float32():
    hidden, targets, weights = numbers(64)
    rounded = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16), (LINEAR, hidden))
    wide = jax.tree.map(lambda x: jax.device_put(np.float32(x)), rounded)
    small = jax.tree.map(jax.device_put, rounded)
    found, expected = both(*small, targets, weights)
    assert found[0].dtype == jnp.float32
    assert found[1][1].weight.dtype == found[1][0].dtype == jnp.bfloat16
    assert_close(found, expected, 2**-7)
    _, exact = slopes(plain, *wide, targets, weights, {})
    assert_close(found[1][1], exact[1], 2**-7)


def test_hidden_states_in_float64_have_gradients_in_float64():
    with jax.enable_x64(True):
        hidden, targets, weights = numbers(8)
        arrays = jax.tree.map(lambda x: x.astype(jnp.float64), (LINEAR, hidden))
        found, expected = both(*arrays, targets, weights)
    assert found[1][0].dtype == found[1][1].weight.dtype == jnp.float64
    assert_close(found, expected, ROUNDING)


def directions(form):
    """First derivatives forwards, second ones forwards over backwards and backwards twice.

    One weight is 0: what is left out there must not come back as a derivative by the weight.
    """
    hidden, targets, weights = numbers(5)
    point = (hidden, TABLE.weight, weights.at[1].set(0.0))
    step = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), point)

    def loss(point):
        return form(point[0], lambda x: jnp.tanh(x @ point[1].T), targets, point[2])

    def slope(point):
        return jax.tree.reduce(
            jnp.add, jax.tree.map(lambda g, s: (g * s).sum(), jax.grad(loss)(point), step)
        )

    forwards = jax.jvp(loss, (point,), (step,))
    return forwards, jax.jvp(jax.grad(loss), (point,), (step,)), jax.grad(slope)(point)


def test_derivatives_forwards_and_of_second_order_are_those_of_the_plain_form():
    assert_close(jax.jit(lambda: directions(ours))(), jax.jit(lambda: directions(plain))(), 1e-5)


def test_vmap_and_checkpoint_change_nothing():
    hidden, targets, weights = numbers(3, 5)

    def loss(form, table, hidden, targets, weights):
        return form(hidden, lambda x: x @ table.T, targets, weights)

    def each(form):
        return jax.vmap(jax.value_and_grad(lambda *a: loss(form, *a), (0, 1)), (None, 0, 0, 0))

    def again(form):
        kept = jax.checkpoint(lambda table: loss(form, table, hidden, targets, weights))
        return jax.value_and_grad(kept)

    arrays = (TABLE.weight, hidden, targets, weights)
    assert_close(jax.jit(each(ours))(*arrays), jax.jit(each(plain))(*arrays), ROUNDING)
    assert_close(jax.jit(again(ours))(TABLE.weight), jax.jit(again(plain))(TABLE.weight), ROUNDING)


def test_a_head_that_is_frozen_costs_no_gradient():
    hidden, targets, weights = numbers(8)

    def products(*argnums):
        def loss(hidden, table):
            return ours(hidden, lambda x: x @ table.T, targets, weights)

        program = jax.grad(loss, argnums) if argnums else loss
        return primitives(program, hidden, TABLE.weight)["dot_general"]

    assert (products(), products(0), products(1), products(0, 1)) == (1, 2, 2, 3)


def test_a_second_eager_call_compiles_nothing():
    hidden, targets, weights = numbers(8)
    ef.cross_entropy_of(hidden, TABLE.attend, targets, weights=weights, chunk=3)
    other = hidden + 1.0
    with compilations() as compiled:
        ef.cross_entropy_of(other, TABLE.attend, targets, weights=weights, chunk=3)
    assert len(compiled) == 0


@pytest.mark.parametrize("chunk", [0, -3])
def test_a_chunk_holds_a_token_at_least(chunk):
    hidden, targets, _ = numbers(8)
    with pytest.raises(ValueError, match=f"`chunk` must be at least 1 token; got {chunk}"):
        ef.cross_entropy_of(hidden, TABLE.attend, targets, chunk=chunk)


def test_a_head_gives_scores_for_every_place():
    hidden, targets, _ = numbers(8)
    with pytest.raises(ValueError, match=r"`head` must give scores.*\(11,\) for .*\(8,\)"):
        ef.cross_entropy_of(hidden, lambda x: TABLE.attend(x).sum(0), targets, chunk=3)


def test_losses_of_models_go_through_chunks_where_logits_are_many(monkeypatch):
    bare = filled(decoder(dim=8))
    pair = filled(ef.families.transformer(vocab=13, dim=8, layers=1, heads=2, hidden=8))
    ids = tokens(3, 7)
    counts = jnp.ones((3, 7)).at[0, :2].set(0.0).at[1, 5:].set(0.0)
    cases = (
        (ef.NextToken(label_smoothing=0.1, z_loss=0.01), bare, ef.TokenBatch(ids, counts)),
        (ef.SequenceToSequence(), pair, ef.PairBatch(ids, ids, target_weights=counts)),
    )
    for loss, model, batch in cases:

        def measured(model, loss=loss, batch=batch):
            return loss(model, batch).mean

        monkeypatch.setattr(chunked, "LARGE", 2**22)
        whole = eqx.filter_jit(eqx.filter_value_and_grad(measured))(model)
        assert primitives(measured, model)["scan"] == 0
        monkeypatch.setattr(chunked, "LARGE", 0)
        assert primitives(measured, model)["scan"] > 0
        pieces = eqx.filter_jit(eqx.filter_value_and_grad(lambda m, f=measured: f(m)))(model)
        assert_close(pieces, whole, 1e-5)


def test_a_model_that_only_gives_logits_keeps_the_plain_form(monkeypatch):
    monkeypatch.setattr(chunked, "LARGE", 0)
    batch = ef.TokenBatch(jnp.arange(10).reshape(2, 5) % VOCAB)

    def model(tokens, *, key=None):
        return TABLE.attend(TABLE(tokens))

    assert primitives(lambda: ef.NextToken()(model, batch).mean)["scan"] == 0
