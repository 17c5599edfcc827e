"""The loss over packed rows is that over their documents one by one, and so are its gradients."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers.compare import assert_close
from tests.helpers.hot import drawn

VOCAB, LENGTH = 13, 12
RANDOM = np.random.default_rng(0)
DOCUMENTS = [RANDOM.integers(0, VOCAB, n) for n in (9, 4, 13, 2, 5, 1, 7)]
ATTENTION = ef.Attention.Config(heads=2)
ROUNDING = 1e-6  # of the largest number


def model(attention=ATTENTION, embedding=ef.InputEmbedding.Config()):
    block = ef.Block.Config(attention, ef.MLP.Config(hidden=16))
    config = ef.DecoderLM.Config(vocab=VOCAB, dim=8, blocks=(block,), embedding=embedding)
    return jax.tree.map(lambda x: 0.5 * x, drawn(config))  # rounds less


MODELS = {
    "rotary": lambda: model(dataclasses.replace(ATTENTION, rotary=ef.Rotary())),
    "learned": lambda: model(
        embedding=ef.InputEmbedding.Config(positions=ef.LearnedPositions.Config(length=LENGTH))
    ),
    "ALiBi": lambda: model(dataclasses.replace(ATTENTION, bias=ef.ALiBi.Config())),
    "window": lambda: model(dataclasses.replace(ATTENTION, rotary=ef.Rotary(), window=3)),
}


def alone(documents):
    """Each document in a row of its own, filled up with padding."""
    size = max(map(len, documents))
    tokens, weights = np.zeros((2, len(documents), size))
    for row, ids in enumerate(documents):
        tokens[row, : len(ids)], weights[row, : len(ids)] = ids, 1.0
    return ef.TokenBatch(tokens.astype(np.int32), weights.astype(np.float32))


@eqx.filter_jit
@eqx.filter_value_and_grad(has_aux=True)
def total(model, batch):
    loss = ef.NextToken()(model, batch, key=None)
    return loss.total, loss.weight


def assert_gradients_equal(got, expected):
    """All numbers of two gradients, up to a share of the largest."""
    one, other = (np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (got, expected))
    assert_close(one, other, ROUNDING)


@pytest.mark.parametrize("name", MODELS)
def test_packed_loss_equals_unpacked_loss_and_so_do_gradients(name):
    made = MODELS[name]()
    rows = ef.Packing(LENGTH, 4).once(DOCUMENTS)
    assert len(rows) == 1
    assert rows[0].segments.max() > 1
    (packed, weight), gradients = total(made, rows[0])
    (unpacked, other), wanted = total(made, alone(DOCUMENTS))
    assert float(weight) == float(other) == sum(len(ids) - 1 for ids in DOCUMENTS)
    assert_close(packed, unpacked, ROUNDING)
    assert_gradients_equal(gradients, wanted)


def test_without_segments_documents_would_see_one_another():
    made = MODELS["rotary"]()
    (row,) = ef.Packing(LENGTH, 4).once(DOCUMENTS)
    seen = eqx.tree_at(lambda b: b.segments, row, None, is_leaf=lambda x: x is None)
    (packed, _), _ = total(made, row)
    (mixed, _), _ = total(made, seen)
    assert abs(float(packed - mixed)) > 0.1


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_in_padding_of_a_row_has_no_influence(side):
    made = MODELS["learned"]()
    ids, other = np.array([1, 2, 3, 4, 5]), np.array([7, 8, 9])
    tokens = np.concatenate([ids, other])
    segments = np.array([1] * 5 + [2] * 3)
    positions = np.concatenate([np.arange(5), np.arange(3)])
    padding = (3, 0) if side == "left" else (0, 3)
    losses = []
    for filler in (0, 11):
        batch = ef.TokenBatch(
            jnp.asarray(np.pad(tokens, padding, constant_values=filler)[None]),
            jnp.asarray(np.pad(np.ones(8), padding)[None], jnp.float32),
            jnp.asarray(np.pad(segments, padding)[None]),
            jnp.asarray(np.pad(positions, padding)[None]),
        )
        losses.append(total(made, batch)[0])
    (unpacked, weight), _ = total(made, alone([ids, other]))
    assert_close(losses, [(unpacked, weight)] * 2, ROUNDING)


def routed():
    mixture = ef.Experts.Config(count=4, top=2, expert=ef.MLP.Config(hidden=16))
    block = ef.Block.Config(dataclasses.replace(ATTENTION, rotary=ef.Rotary()), mixture)
    return drawn(ef.DecoderLM.Config(vocab=VOCAB, dim=8, blocks=(block,)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_routers_leave_out_the_padding_that_a_batch_says_is_none_of_its_tokens(side):
    """One more token of padding, or nine: neither the text's loss nor the routers' change."""
    made, ids, loss = routed(), np.stack([DOCUMENTS[0], DOCUMENTS[0][::-1]]), ef.NextToken()

    def means(padding, told):
        width = ((0, 0), (padding, 0) if side == "left" else (0, padding))
        real = np.pad(np.ones(ids.shape, bool), width)
        batch = ef.TokenBatch(np.pad(ids, width).astype(np.int32), weights=real)
        batch = ef.TokenBatch(batch.tokens, valid=real) if told else batch
        return eqx.filter_jit(loss)(made, batch).means()

    one, nine = (means(padding, told=True) for padding in (1, 9))
    assert {"load_balance", "router_z"} < set(one)
    assert_close(nine, one, 2e-6)
    counted = [float(means(padding, told=False)["router_z"]) for padding in (1, 9)]
    assert abs(counted[0] - counted[1]) > 1e-3 * counted[0]


def test_packed_rows_that_say_where_their_padding_is_have_the_same_loss():
    made, (row,) = MODELS["rotary"](), ef.Packing(LENGTH, 4).once(DOCUMENTS)
    told = dataclasses.replace(row, valid=row.segments > 0)
    assert not told.valid.all()
    assert_close(total(made, told)[0], total(made, row)[0], ROUNDING)
    few = ef.TokenBatch(np.array([[5, 0, 0]]), segments=np.array([[1, 0, 0]]))
    few = dataclasses.replace(few, valid=few.segments > 0)
    assert few.context()["mask"].draw(2).split() == [*"■·", *"··"]
    assert not few.target_weights().any()


def test_accumulated_gradients_of_packed_rows_are_those_of_all_rows():
    from eqxformer.training.accumulation import accumulated

    made = MODELS["rotary"]()
    (row,) = ef.Packing(LENGTH, 4).once(DOCUMENTS)
    (packed, weight), gradients = total(made, row)
    loss, summed = eqx.filter_jit(accumulated)(ef.NextToken(), made, row, microbatch=3, key=None)
    assert_close((loss.total, loss.weight), (packed, weight), ROUNDING)
    assert_gradients_equal(summed, jax.tree.map(lambda g: g / weight, gradients))
