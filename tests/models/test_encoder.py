"""Encoders look both ways, past padding, and answer three kinds of questions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers import twins
from tests.helpers.models import VOCAB, block, close, filled, logits, tokens

BERT = ef.families.bert(vocab=VOCAB, dim=6, layers=2, heads=3, hidden=7, context=9)
LOCAL = ef.Encoder.Config(
    vocab=VOCAB,
    dim=6,
    blocks=(block({"window": (1, 1)}), block({"rotary": ef.Rotary(), "head_dim": 4})),
    embedding=ef.InputEmbedding.Config(norm=ef.LayerNorm.Config(), width=4),
    norm=ef.RMSNorm.Config(),
    bias=ef.RelativeBias.Config(buckets=8, max_distance=9),
    pooling=ef.Pooling.Config(take="mean", unit_length=True),
)
ENCODERS = {"bert": BERT, "local": LOCAL}
EVERY = pytest.mark.parametrize("name", ENCODERS)


@pytest.fixture(scope="module")
def encoders():
    return {name: filled(config) for name, config in ENCODERS.items()}


def _hidden(encoder, ids, valid):
    return np.asarray(logits(encoder, jnp.asarray(ids), mask=ef.Padding(jnp.asarray(valid))))


@EVERY
def test_an_encoder_equals_its_twin_and_looks_both_ways(name, encoders):
    ids = np.asarray(tokens(3, 7))
    out = _hidden(encoders[name], ids, np.ones((3, 7), bool))
    close(out[0], twins.encoder(twins.plain(encoders[name]), ids[0]), 1e-4)
    changed = ids.copy()
    changed[:, -1] = (changed[:, -1] + 1) % VOCAB
    assert (
        (_hidden(encoders[name], changed, np.ones((3, 7), bool))[:, 0] != out[:, 0]).any(-1).all()
    )


@EVERY
def test_padding_on_either_side_gives_the_states_and_the_vector_of_the_text_alone(name, encoders):
    encoder, length = encoders[name], 4
    ids, valid = np.full((3, 7), -1), np.zeros((3, 7), bool)
    text = np.asarray(tokens(length))
    ids[0, :length], valid[0, :length] = text, True
    ids[1, -length:], valid[1, -length:] = text, True
    ids[2, 1 : 1 + length], valid[2, 1 : 1 + length] = text, True
    out = _hidden(encoder, ids, valid)
    expected = twins.encoder(twins.plain(encoder), text)
    for row in range(3):
        close(out[row][valid[row]], expected, 1e-4)
    embed = eqx.filter_jit(lambda encoder, ids, mask: encoder.embed(ids, mask=mask))
    vectors = embed(encoder, jnp.asarray(ids), ef.Padding(jnp.asarray(valid)))
    close(vectors[1], vectors[0])
    close(vectors[2], vectors[0])
    if encoder.config.pooling.unit_length:
        close(jnp.square(vectors).sum(-1), np.ones(3))


def test_token_types_take_part(encoders):
    ids, types = tokens(2, 5), jnp.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
    out = logits(encoders["bert"], ids, types=types)
    plain = twins.plain(encoders["bert"])
    close(out[0], twins.encoder(plain, np.asarray(ids[0]), types=np.asarray(types[0])), 1e-4)


def test_a_text_longer_than_the_positions_is_an_error(encoders):
    with pytest.raises(ValueError, match="position must be at least 0 and below 9"):
        encoders["bert"](tokens(1, 10))


def test_positions_and_masks_that_do_not_fit_an_encoder_are_errors(encoders):
    mask = ef.Segments(jnp.zeros((3, 4), jnp.int32))
    with pytest.raises(ValueError, match=r"`Segments.query_ids` is for a batch of \(3,\); this"):
        encoders["bert"](tokens(2, 4), mask=mask)
    bare = filled(ef.Encoder.Config(vocab=VOCAB, dim=6, blocks=(block({}),)))
    with pytest.raises(ValueError, match="nothing in this model depends on them; set `positions`"):
        bare(tokens(2, 4), positions=jnp.arange(4))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_no_rows_or_no_tokens_give_empty_states(shape, encoders):
    out = logits(encoders["local"], jnp.zeros(shape, jnp.int32))
    assert out.shape == (*shape, 6)


HEADS = {
    "masked tokens": (ef.MaskedLMHead.Config(), (2, 5, VOCAB)),
    "a label per sequence": (ef.SequenceHead.Config(labels=3), (2, 3)),
    "a label per token": (ef.LabelHead.Config(labels=2), (2, 5, 2)),
}


@pytest.mark.parametrize("question", HEADS)
def test_a_head_scores_the_states_of_real_tokens(question):
    config, shape = HEADS[question]
    built = filled(ef.EncoderWithHead.Config(LOCAL, config))
    ids, mask = tokens(2, 5), ef.Padding(jnp.array([[True] * 5, [False, False, True, True, True]]))
    out = logits(built, ids, mask=mask)
    assert out.shape == shape
    hidden = logits(built.encoder, ids, mask=mask)
    if isinstance(built.head, ef.TokenHead):
        expected = built.head(hidden, built.encoder.embedding.tokens)
    else:
        expected = built.head(hidden, mask.valid)
    close(out, expected)


def test_a_classifier_gives_every_parameter_that_it_reads_a_gradient():
    built = filled(ef.EncoderWithHead.Config(BERT, ef.SequenceHead.Config(labels=3)))
    ids, types = tokens(3, 6), tokens(3, 6, vocab=2)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(m):
        scores = jax.nn.log_softmax(m(ids, types=types))
        return -scores[jnp.arange(3), jnp.arange(3)].sum()

    for path, found in ef.named_arrays(gradient(built)).items():
        assert np.isfinite(found).all(), path
        if path.startswith("encoder.pooling"):  # the encoder's own pooler; the head has another
            assert not found.any()
        elif not path.endswith("key.bias"):
            assert np.abs(found).max() > 1e-6, path
