"""Encoder-decoders with labels: what the decoder reads, where it is asked, what has no meaning."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.models.encoder_decoder_with_head import shifted
from tests.helpers import reference, twins
from tests.helpers.models import VOCAB, close, filled, logits, tokens

BODY = ef.families.transformer(vocab=VOCAB, dim=8, layers=1, heads=2, hidden=7, dropout=0.2).edit(
    "decoder", head=ef.TiedHead.Config()
)
LABELS = ef.SequenceHead.Config(3, ef.Pooling.Config("last", ef.Linear.Config()))
END = 4
TEXT = [7, END, 9, 5, END, 6]


def config(head: Any = LABELS, start: Any = 2, end: int | None = END, body=BODY):
    """A config tree of a model with labels."""
    return ef.EncoderDecoderWithHead.Config(body, head, start, end)


@pytest.fixture(scope="module")
def classifier():
    """Labels of a text at its last end."""
    return filled(config())


@pytest.mark.parametrize(("start", "first"), [(2, [2, 2, 2, 2]), ("last", [8, 7, 7, 8])])
def test_the_decoder_reads_each_real_token_in_the_place_of_the_next(start, first):
    text = jnp.array([[5, 6, 7, 8], [5, 6, 7, 1], [1, 5, 6, 7], [5, 1, 1, 8]])
    real = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 1]], bool)
    out = np.asarray(shifted(text, start, jnp.asarray(real)))
    rows = [row[kept].tolist() for row, kept in zip(out, real, strict=True)]
    rest = [[5, 6, 7], [5, 6], [5, 6], [5]]
    assert rows == [[one, *more] for one, more in zip(first, rest, strict=True)]


@pytest.mark.parametrize("shape", [(2, 0), (0, 3)])
def test_no_rows_and_no_tokens_are_shifted_to_none(shape):
    for start in (2, "last"):
        out = shifted(jnp.zeros(shape, jnp.int32), start, jnp.ones(shape, bool))
        assert out.shape == shape


@pytest.mark.parametrize(("end", "place"), [(END, 4), (None, 5)])
def test_a_text_has_the_labels_of_the_decoders_state_at_its_last_end_or_token(end, place):
    model, text = filled(config(end=end)), jnp.array([TEXT])
    run = eqx.filter_jit(lambda body, *sides: body.run(*sides)[0])
    states = np.asarray(run(model.body, text, jnp.array([[2, *TEXT[:-1]]])))
    hidden = np.tanh(reference.linear(twins.plain(model.head.pooling.dense), states[:, place]))
    close(logits(model, text), reference.linear(twins.plain(model.head.linear), hidden))


@pytest.mark.parametrize("start", [2, "last"])
@pytest.mark.parametrize("head", [LABELS, ef.LabelHead.Config(labels=2)])
def test_padding_on_either_side_and_between_changes_nothing(head, start):
    end = END if head is LABELS else None
    model = filled(config(head, start, end))
    places = [[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8], [1, 2, 3, 6, 7, 8]]
    text, valid = np.full((3, 9), END), np.zeros((3, 9), bool)
    for row, at in enumerate(places):
        text[row, at], valid[row, at] = TEXT, True
    out = logits(model, jnp.asarray(text), mask=ef.Padding(jnp.asarray(valid)))
    alone = logits(model, jnp.array(TEXT))
    for row, at in enumerate(places):
        close(out[row] if end else np.asarray(out)[row, at], alone)


def test_a_text_without_its_end_is_an_error_and_nan_where_no_value_can_be_seen(classifier):
    text = jnp.array([TEXT, [7, 5, 9, 5, 3, 6], [END] * 6])
    mask = ef.Padding(jnp.array([[True] * 6, [True] * 6, [False] * 6]))
    with pytest.raises(ValueError, match=r"its `end`, the token 4, .* 2 of 3 have none"):
        classifier(text, mask=mask)
    out = np.asarray(logits(classifier, text, mask=mask))
    assert np.isnan(out).all(-1).tolist() == [False, True, True]


def test_gradients_reach_every_parameter(classifier):
    text = tokens(3, 6).at[:, -1].set(END)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(m):
        return jax.nn.log_softmax(m(text))[jnp.arange(3), jnp.arange(3)].sum()

    for path, found in ef.named_arrays(gradient(classifier)).items():
        assert np.isfinite(found).all(), path
        assert path.endswith("key.bias") or np.abs(found).max() > 1e-6, path


def test_a_key_switches_dropout_on_and_another_key_draws_anew(classifier):
    text = jnp.array([TEXT])
    one, again, other = (logits(classifier, text, key=jax.random.key(seed)) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.allclose(one, other)
    assert not np.allclose(one, logits(classifier, text))


def test_a_model_built_here_is_stored_in_our_own_format_whole(tmp_path, classifier):
    ef.save(classifier, tmp_path / "ours")
    again = ef.load(tmp_path / "ours")
    assert again.config == classifier.config
    one, two = ef.named_arrays(classifier), ef.named_arrays(again)
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[path], two[path]) for path in one)


def test_other_masks_than_padding_are_refused(classifier):
    for mask in (ef.Causal(), ef.Segments(jnp.zeros((1, 6), jnp.int32))):
        with pytest.raises(ValueError, match=r"`mask` must be Padding\(valid\), or None"):
            classifier(jnp.array([TEXT]), mask=mask)


OWN = BODY.edit("decoder", head=ef.LinearHead.Config())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: config(body=OWN), "`body.decoder.head` is never asked and must have no"),
        (
            lambda: config(body=BODY.edit("decoder.head", bias=True)),
            "`body.decoder.head` is never asked and must have no",
        ),
        (lambda: config(start=VOCAB), "`start` must be a token id below 13; got 13"),
        (lambda: config(end=-1), "`end` must be a token id below 13; got -1"),
        (lambda: config(ef.LabelHead.Config(2)), "`end` is for a SequenceHead"),
        (
            lambda: config(body=BODY.edit(tokens="separate").edit("decoder", vocab=11)),
            "one vocabulary on both sides; got Encoder of 13 tokens and DecoderLM of 11",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
