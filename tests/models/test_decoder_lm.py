"""Decoders of every family: equal to their twins, causal, blind to padding, safe with bad input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers import twins
from tests.helpers.models import (
    DECODERS,
    SEQ2SEQ,
    VOCAB,
    block,
    close,
    decoder,
    filled,
    logits,
    model,
    tokens,
)

ROWS, SEQ = 3, 11
KEY = jax.random.key(0)
EVERY = pytest.mark.parametrize("name", DECODERS)


def _padded(name, ids, valid):
    """Logits of rows with padding; all tests of a family share this one compiled program."""
    assert ids.shape == valid.shape == (ROWS, SEQ)
    return np.asarray(logits(model(name), jnp.asarray(ids), mask=ef.Padding(jnp.asarray(valid))))


def _full(name, ids):
    return _padded(name, ids, np.ones((ROWS, SEQ), bool))


@eqx.filter_jit
def _gradient(model, ids, valid, weights):
    """The gradient of the weighted sum of a model's logits."""
    return eqx.filter_grad(lambda m: (m(ids, mask=ef.Padding(valid)) * weights).sum())(model)


@EVERY
def test_a_family_equals_its_twin(name):
    ids = tokens(ROWS, SEQ)
    expected = twins.decoder(twins.plain(model(name)), np.asarray(ids[0]))
    close(_full(name, ids)[0], expected, 1e-4)


@EVERY
@pytest.mark.parametrize("place", [4, SEQ - 1])
def test_a_later_token_changes_no_earlier_logits(name, place):
    ids = np.array(tokens(ROWS, SEQ))
    before = _full(name, ids)
    ids[:, place] = (ids[:, place] + 1) % VOCAB
    after = _full(name, ids)
    np.testing.assert_array_equal(after[:, :place], before[:, :place])
    assert (after[:, place] != before[:, place]).any(-1).all()


@EVERY
def test_left_padding_right_padding_and_none_give_the_same(name):
    ids, length = np.array(tokens(ROWS, SEQ)), 7
    text = ids[0, :length]
    ids[1:], valid = -1, np.zeros((ROWS, SEQ), bool)  # -1 is NaN within the compiled model
    valid[0] = True
    ids[1, :length], valid[1, :length] = text, True
    ids[2, -length:], valid[2, -length:] = text, True
    out = _padded(name, ids, valid)
    close(out[1, :length], out[0, :length])
    close(out[2, -length:], out[0, :length])


@EVERY
def test_gradients_are_finite_and_reach_every_parameter(name):
    ids = tokens(2, 6).at[0, 0].set(VOCAB - 1)
    weights = np.random.default_rng(1).standard_normal((2, 6, VOCAB)).astype(np.float32)
    gradient = _gradient(model(name), ids, np.ones((2, 6), bool), weights)
    for path, found in ef.named_arrays(gradient).items():
        assert np.isfinite(found).all(), path
        if not path.endswith("key.bias"):  # the same for all keys of a query: no part of a softmax
            assert np.abs(found).max() > 1e-6, path


@pytest.mark.parametrize("name", ["gpt", "experts and sinks"])
def test_vmap_over_rows_is_the_same_as_the_whole_batch(name):
    ids = tokens(ROWS, SEQ)
    mapped = eqx.filter_jit(lambda m, ids: eqx.filter_vmap(m)(ids))
    close(mapped(model(name), ids), _full(name, ids))


@pytest.mark.parametrize("name", ["gpt", "gemma", "relative", "alibi"])
def test_packed_segments_are_as_if_alone(name):
    ids, first = tokens(1, SEQ), 4
    segments = jnp.array([[0] * first + [1] * (SEQ - first)])
    positions = jnp.concatenate([jnp.arange(first), jnp.arange(SEQ - first)])[None]
    told = {"positions": positions} if model(name).reads_positions else {}
    packed = logits(model(name), ids, mask=ef.Segments(segments), **told)
    alone, valid = np.zeros((ROWS, SEQ), int), np.zeros((ROWS, SEQ), bool)
    for row, part in enumerate((ids[0, :first], ids[0, first:], ids[0, :1])):
        alone[row, : len(part)], valid[row, : len(part)] = part, True
    out = _padded(name, alone, valid)
    close(packed[0, :first], out[0, :first])
    close(packed[0, first:], out[1, : SEQ - first])


def test_tokens_of_a_prefix_see_each_other_and_the_rest_is_causal():
    ids, length = tokens(1, SEQ), 4
    out = logits(model("gpt"), ids, mask=ef.Prefix(jnp.array([length])))
    allowed = np.tril(np.ones((SEQ, SEQ), bool))
    allowed[:, :length] = True
    close(
        out[0], twins.decoder(twins.plain(model("gpt")), np.asarray(ids[0]), allowed=allowed), 1e-4
    )


def test_full_makes_a_decoder_look_both_ways():
    ids = tokens(1, SEQ)
    out = logits(model("gpt"), ids, mask=ef.Full())
    allowed = np.ones((SEQ, SEQ), bool)
    close(
        out[0], twins.decoder(twins.plain(model("gpt")), np.asarray(ids[0]), allowed=allowed), 1e-4
    )


@pytest.mark.parametrize("name", ["gpt", "gemma"])
def test_a_row_without_any_token_gives_finite_gradients(name):
    valid = np.array([[True] * 6, [False] * 6])
    weights = np.repeat(np.where(valid, 1.0, 1e-3).astype(np.float32)[..., None], VOCAB, axis=-1)
    gradient = _gradient(model(name), tokens(2, 6), valid, weights)
    for path, found in ef.named_arrays(gradient).items():
        assert np.isfinite(found).all(), path


# Input at the edge


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
@pytest.mark.parametrize("name", ["gpt", "experts and sinks"])
def test_no_rows_or_no_tokens_give_empty_logits(name, shape):
    assert logits(model(name), jnp.zeros(shape, jnp.int32)).shape == (*shape, VOCAB)


@pytest.mark.parametrize("name", ["gpt", "experts and sinks"])
@pytest.mark.parametrize("wrong", [-1, VOCAB, 99])
def test_an_id_outside_the_vocabulary_is_an_error_or_nan_in_its_own_row_alone(name, wrong):
    ids = tokens(ROWS, SEQ).at[1, 4].set(wrong)
    with pytest.raises(ValueError, match=f"at least 0 and below {VOCAB}; got {wrong}"):
        model(name)(ids)
    out = _full(name, ids)
    assert np.isnan(out[1, 4:]).all()
    assert np.isfinite(out[[0, 2]]).all()


def test_a_position_past_the_table_is_an_error_or_nan_in_its_own_row_alone():
    built = model("gpt")
    length = built.config.embedding.positions.length
    with pytest.raises(ValueError, match=f"position must be at least 0 and below {length}"):
        built(jnp.zeros((1, length + 1), jnp.int32))
    ids, positions = tokens(2, 3), jnp.array([[0, length - 2, length - 1], [0, 1, length]])
    with pytest.raises(ValueError, match=f"below {length}; got {length}"):
        built(ids, positions=positions)
    out = logits(built, ids, positions=positions)
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1, 2]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(tokens(1, 3), jnp.ones((1, 2, 12))), "no block looks at it"),
        (lambda m: m(tokens(1, 3), table=m.embedding.tokens), "has its own token table"),
        (lambda m: m(tokens(1, 3), source_mask=ef.Full()), "no block looks at it"),
        (
            lambda m: m(tokens(1, 3), mask=ef.Padding(jnp.ones((1, 4), bool))),
            r"`Padding\.valid` describes 4 tokens; this call has 3",
        ),
        (
            lambda m: m(tokens(2, 3), mask=ef.Padding(jnp.ones((5, 3), bool))),
            r"`Padding\.valid` is for a batch of \(5,\); this call has \(2,\)",
        ),
        (
            lambda m: m(tokens(3), mask=ef.Full() & ef.Prefix(jnp.ones(2, int))),
            r"`Prefix\.length` is for a batch of \(2,\); this call has \(\)",
        ),
        (
            lambda m: ef.rebuild(m, m.config.edit("blocks.*.attention", rotary=None))(
                tokens(1, 3), positions=jnp.arange(3)
            ),
            "nothing in this model depends on them",
        ),
        (
            lambda m: model("alibi")(tokens(1, 3), positions=jnp.arange(3)),
            "A bias by distance needs none",
        ),
        (
            lambda m: model("relative")(tokens(1, 3), positions=jnp.arange(3)),
            "A bias by distance needs none",
        ),
    ],
)
def test_an_argument_that_would_be_ignored_or_does_not_fit_is_an_error(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(model("llama"))


# Configs that cannot be


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: decoder(dim=0), "`dim` must be positive; got 0"),
        (lambda: decoder().edit(vocab=-1), "`vocab` must be positive; got -1"),
        (lambda: ef.TiedHead.Config(softcap=0.0), "`softcap` must be above 0"),
        (lambda: ef.LinearHead.Config(softcap=-1.0), "`softcap` must be above 0"),
        (lambda: ef.TypeEmbedding.Config(count=0), "`count` of token types must be positive"),
        (lambda: ef.shapes(decoder(block({"heads": 5}))), "`heads` must divide"),
        (
            lambda: ef.shapes(
                decoder(block({}), block({"heads": 2}), bias=ef.RelativeBias.Config())
            ),
            r"blocks of one number of heads; got \[2, 3\]",
        ),
        (lambda: ef.shapes(decoder(bias=ef.ALiBi.Config())), r"one number of heads; got \[\]"),
        (
            lambda: decoder(source_dim=5).build(source_dim=6, key=jax.random.key(0)),
            "that of the config; got source_dim=6, and 5 in the config",
        ),
    ],
)
def test_a_model_that_cannot_be_is_refused_with_the_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_shared_bias_serves_parallel_blocks_too():
    parallel = ef.ParallelBlock.Config(ef.Attention.Config(heads=3), ef.MLP.Config(hidden=5))
    built = filled(decoder(parallel, bias=ef.ALiBi.Config()))
    ids = tokens(1, 5)
    expected = twins.decoder(twins.plain(built), np.asarray(ids[0]))
    close(logits(built, ids)[0], expected, 1e-4)


def test_half_precision_runs_throughout_and_stays_near_single():
    built = model("llama")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if eqx.is_inexact_array(x) else x, built)
    ids = tokens(ROWS, SEQ)
    out = logits(half, ids)
    assert out.dtype == jnp.bfloat16
    reference = _full("llama", ids)
    assert np.abs(np.asarray(out, np.float32) - reference).max() < 0.1 * np.abs(reference).max()
    assert {c.dtype for c in jax.tree.leaves(half.init_cache((1,), 4).blocks)} == {
        np.dtype("int32"),
        jnp.dtype("bfloat16"),
    }


def test_a_source_as_wide_as_the_model_leaves_its_config_as_it_is():
    config = SEQ2SEQ["widths"].decoder

    def built(config, width):
        return eqx.filter_eval_shape(lambda key: config.build(source_dim=width, key=key), KEY)

    for given, width in ((config, 12), (config, None), (config.edit(source_dim=6), 6)):
        assert built(given, width).config == given
    assert built(config, 6).config == config.edit(source_dim=6)


def test_positions_are_told_to_a_bias_to_which_places_matter():
    rounded = ef.ALiBi.Config(rounding="bfloat16")
    for config in (decoder(block({"bias": rounded})), decoder(block({}), bias=rounded)):
        built = ef.shapes(config)
        assert built.reads_positions
        assert eqx.filter_eval_shape(built, tokens(1, 3), positions=jnp.arange(3)).shape[1] == 3
