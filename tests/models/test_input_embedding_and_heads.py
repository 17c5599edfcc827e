"""What enters the first block and what leaves the last: embeddings, poolings, heads."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers import reference, twins
from tests.helpers.hot import normal
from tests.helpers.models import VOCAB, close, filled, tokens

DIM = 6


def _filled(build):
    class Inside(ef.Config):
        """A part where it is used, with the sizes of its place."""

        def build(self, *, key):
            return build(key)

    return filled(Inside())


def _embedding(**options):
    config = ef.InputEmbedding.Config(**options)
    return _filled(lambda key: config.build(VOCAB, DIM, key=key))


# Embedding


@pytest.mark.parametrize(
    ("scale", "factor"),
    [
        (1.0, 1.0),
        (0.3, 0.3),
        ("sqrt(dim)", 6**0.5),
        ("1/sqrt(dim)", 6**-0.5),
        ("rounded sqrt(dim)", 6**0.5),
    ],
)
def test_the_scale_is_of_the_tokens_alone_and_the_norm_of_the_sum(scale, factor):
    part = _embedding(
        scale=scale,
        positions=ef.LearnedPositions.Config(length=7),
        types=ef.TypeEmbedding.Config(count=3),
        norm=ef.LayerNorm.Config(),
    )
    ids, types = tokens(2, 4), jnp.array([[0, 1, 2, 0], [1, 1, 1, 1]])
    plain = twins.plain(part)
    x = factor * plain.tokens.weight[ids] + plain.positions.weight[:4] + plain.types.weight[types]
    close(part(ids, types=types), reference.norm(plain.norm, np.asarray(x)))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("scale", "factor"),
    [("sqrt(dim)", 6**0.5), ("rounded sqrt(dim)", 2.453125), (0.22, 0.22)],
)
def test_a_scale_in_bfloat16_is_exact_unless_it_is_rounded_as_in_gemma(scale, factor, compiled):
    part = jax.tree.map(lambda a: a.astype(jnp.bfloat16), _embedding(scale=scale))
    exact = factor * np.asarray(part.tokens.weight, np.float32)
    out = (jax.jit(part.__call__) if compiled else part)(jnp.arange(VOCAB))
    assert out.dtype == jnp.bfloat16
    assert (np.asarray(out) == exact.astype(out.dtype)).all()


def test_types_left_out_are_all_of_the_first_type():
    part, ids = _embedding(types=ef.TypeEmbedding.Config()), tokens(2, 4)
    close(part(ids), part(ids, types=jnp.zeros((2, 4), jnp.int32)))
    assert not np.allclose(part(ids), part(ids, types=jnp.ones((2, 4), jnp.int32)))


def test_types_for_a_model_without_types_are_an_error_not_ignored():
    with pytest.raises(ValueError, match=r"has no token types; set `types=TypeEmbedding\.Config"):
        _embedding()(tokens(2, 4), types=jnp.zeros((2, 4), jnp.int32))


def test_a_type_outside_the_table_is_an_error():
    with pytest.raises(ValueError, match="token type must be at least 0 and below 2; got 2"):
        _embedding(types=ef.TypeEmbedding.Config())(tokens(1, 2), types=jnp.array([[0, 2]]))


def test_positions_are_those_given_or_counted_from_zero():
    part, ids = _embedding(positions=ef.Sinusoids.Config()), tokens(2, 4)
    close(part(ids), part(ids, positions=jnp.arange(4)))
    later = part(ids, positions=jnp.array([[5, 6, 7, 8], [0, 1, 2, 3]]))
    close(later[1], part(ids)[1])
    assert not np.allclose(later[0], part(ids)[0])


WIDTH = 4
PARTS = {
    "positions": ef.LearnedPositions.Config(length=7),
    "types": ef.TypeEmbedding.Config(),
    "norm": ef.LayerNorm.Config(),
}


@pytest.mark.parametrize("projected", ["sum", "tokens"])
def test_tables_narrower_than_the_model_are_projected_after_the_sum_or_before(projected):
    linear = ef.Linear.Config(bias=projected == "sum")
    part = _embedding(scale=0.3, width=WIDTH, project=linear, projected=projected, **PARTS)
    plain, ids = twins.plain(part), tokens(2, 4)
    x = 0.3 * plain.tokens.weight[ids]
    if projected == "tokens":
        x = np.stack([reference.linear(plain.project, row) for row in x])
    x = reference.norm(plain.norm, x + plain.positions.weight[:4] + plain.types.weight[0])
    if projected == "sum":
        x = np.stack([reference.linear(plain.project, row) for row in x])
    close(part(ids), x)
    assert part.tokens.weight.shape == (VOCAB, WIDTH)
    assert (part.project.bias is not None) == (projected == "sum")


@pytest.mark.parametrize("projected", ["sum", "tokens"])
def test_the_axes_of_narrow_tables_are_named_so(projected):
    part = _embedding(width=WIDTH, projected=projected, **PARTS)
    axes, summed = ef.leaf_axes(part), "width" if projected == "sum" else "dim"
    assert axes["tokens.weight"] == ("vocab", "width")
    assert axes["project.weight"] == ("width", "dim")
    assert axes["positions.weight"] == ("positions", summed)
    assert axes["norm.bias"] == (summed,)
    sizes = {"dim": DIM, "width": WIDTH}
    assert part.norm.bias.shape == (sizes[summed],)


def test_a_table_as_wide_as_the_model_may_still_be_projected_and_none_is_refused():
    assert _embedding(width=DIM).project.weight.shape == (DIM, DIM)
    assert _embedding().project is None
    with pytest.raises(ValueError, match="`width` must be positive, or None; got 0."):
        ef.InputEmbedding.Config(width=0)


def test_embedding_dropout_comes_last_and_only_with_a_key():
    part, ids = _embedding(dropout=0.5, norm=ef.LayerNorm.Config()), tokens(40, 50)
    still, dropped = np.asarray(part(ids)), np.asarray(part(ids, key=jax.random.key(0)))
    kept = dropped != 0
    close(dropped[kept], 2 * still[kept])
    assert abs(kept.mean() - 0.5) < 4 * 0.5 / np.sqrt(kept.size)


def test_an_embedding_without_a_table_needs_anothers():
    part = _embedding()
    shared = eqx.tree_at(lambda p: p.tokens, part, None)
    close(shared(tokens(2, 3), table=part.tokens), part(tokens(2, 3)))
    with pytest.raises(ValueError, match="shares another's token table; pass it as `table`"):
        shared(tokens(2, 3))


# Heads


def _head(config):
    return _filled(lambda key: config.build(DIM, VOCAB, key=key))


def _table():
    return _filled(lambda key: ef.Embedding(VOCAB, DIM, key=key))


def test_a_tied_head_is_the_token_table_scaled_shifted_and_bounded():
    part, table, x = (
        _head(ef.TiedHead.Config("1/sqrt(dim)", 0.7, True)),
        _table(),
        normal(0, 2, DIM),
    )
    y = np.asarray(x) @ np.asarray(table.weight).T / DIM**0.5 + np.asarray(part.bias)
    close(part(x, table), 0.7 * np.tanh(y / 0.7))


def test_a_linear_head_has_its_own_table_scaled_and_bounded():
    part, x = _head(ef.LinearHead.Config(ef.Linear.Config(), 0.5, 0.7)), normal(0, 2, DIM)
    y = 0.5 * reference.linear(twins.plain(part).linear, np.asarray(x))
    close(part(x, _table()), 0.7 * np.tanh(y / 0.7))
    assert part.linear.bias is not None
    assert _head(ef.LinearHead.Config()).linear.bias is None


def test_a_masked_lm_head_transforms_normalises_and_scores_with_the_table():
    part, table, x = _head(ef.MaskedLMHead.Config()), _table(), normal(0, 2, DIM)
    plain = twins.plain(part)
    h = reference.activate("gelu", reference.linear(plain.dense, np.asarray(x)))
    y = reference.norm(plain.norm, h) @ np.asarray(table.weight).T + plain.output.bias
    close(part(x, table), y)
    untied = _head(ef.MaskedLMHead.Config(output=ef.LinearHead.Config()))
    assert untied.output.linear.weight.shape == (DIM, VOCAB)


def test_heads_lead_to_the_width_of_a_narrower_table():
    table = _filled(lambda key: ef.Embedding(VOCAB, WIDTH, key=key))
    x, weight = normal(0, 2, DIM), np.asarray(table.weight, np.float64)

    def narrow(config):
        return _filled(lambda key: config.build(DIM, VOCAB, width=WIDTH, key=key))

    tied = narrow(ef.TiedHead.Config(project=ef.Linear.Config(bias=False)))
    close(tied(x, table), reference.linear(twins.plain(tied).project, np.asarray(x)) @ weight.T)
    masked = narrow(ef.MaskedLMHead.Config())
    plain = twins.plain(masked)
    h = reference.activate("gelu", reference.linear(plain.dense, np.asarray(x)))
    close(masked(x, table), reference.norm(plain.norm, h) @ weight.T + plain.output.bias)
    untied = narrow(ef.MaskedLMHead.Config(output=ef.LinearHead.Config()))
    assert ef.leaf_axes(untied)["output.linear.weight"] == ("width", "vocab")
    assert untied.output.linear.weight.shape == (WIDTH, VOCAB)
    assert ef.leaf_axes(masked)["dense.weight"] == ("dim", "width")
    assert ef.leaf_axes(masked)["norm.weight"] == ("width",)


def test_a_head_tied_to_a_narrower_table_needs_a_projection():
    with pytest.raises(ValueError, match="table has a width of 4, what it is tied to one of 6"):
        ef.TiedHead(DIM, VOCAB, width=WIDTH, key=jax.random.key(0))


@pytest.mark.parametrize("cap", [None, 0.5])
def test_a_softcap_bounds_every_logit(cap):
    part = _head(ef.TiedHead.Config(softcap=cap))
    largest = float(jnp.abs(part(100.0 * normal(0, 5, DIM), _table())).max())
    assert largest <= 0.5 if cap else largest > 10


# Pooling

X = normal(3, 3, 5, DIM)
# Padding on the right, on the left and in the middle of a row; what it holds must not matter.
VALID = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1]], bool)
TAKES = {
    "mean": lambda rows: rows.mean(0),
    "max": lambda rows: rows.max(0),
    "first": lambda rows: rows[0],
    "last": lambda rows: rows[-1],
}


def _pooling(**options):
    config = ef.Pooling.Config(**options)
    return _filled(lambda key: config.build(DIM, key=key))


@pytest.mark.parametrize("take", TAKES)
def test_pooling_takes_real_tokens_alone(take):
    part, valid = _pooling(take=take), jnp.asarray(VALID)
    expected = np.stack([TAKES[take](np.asarray(X)[i][VALID[i]]) for i in range(3)])
    close(part(X, valid), expected)
    broken = jnp.where(valid[..., None], X, jnp.nan)
    close(part(broken, valid), expected)
    close(part(X), np.stack([TAKES[take](row) for row in np.asarray(X)]))


@pytest.mark.parametrize("take", TAKES)
@pytest.mark.parametrize("unit_length", [False, True])
def test_a_sequence_without_tokens_pools_to_zero_with_finite_gradients(take, unit_length):
    part = _pooling(take=take, unit_length=unit_length)
    valid = jnp.asarray([[True] * 5, [False] * 5, [True] * 5])
    y, gradient = jax.value_and_grad(lambda x: jnp.square(part(x, valid) - 1.0).sum())(X)
    close(part(X, valid)[1], np.zeros(DIM))
    assert np.isfinite(y)
    assert np.isfinite(gradient).all()
    assert part(jnp.zeros((2, 0, DIM))).shape == (2, DIM)
    close(part(jnp.zeros((2, 0, DIM))), np.zeros((2, DIM)))


def test_a_pooler_is_a_layer_after_the_first_token_and_unit_length_is_last():
    part = _pooling(take="first", dense=ef.Linear.Config())
    plain = twins.plain(part)
    y = np.tanh(reference.linear(plain.dense, np.asarray(X)[:, 0]))
    close(part(X), y)
    unit = _pooling(take="first", dense=ef.Linear.Config(), unit_length=True)
    close(unit(X), y / np.linalg.norm(y, axis=-1, keepdims=True))


def test_a_norm_after_the_poolers_layer_comes_before_the_unit_length():
    part = _pooling(
        dense=ef.Linear.Config(bias=False), activation="gelu", norm=ef.LayerNorm.Config()
    )
    plain = twins.plain(part)
    mean = np.asarray(X).mean(1)
    y = reference.norm(plain.norm, reference.activate("gelu", reference.linear(plain.dense, mean)))
    close(part(X), y)
    unit = ef.Pooling(DIM, norm=ef.RMSNorm.Config(), unit_length=True, key=jax.random.key(0))
    close(jnp.square(unit(X)).sum(-1), np.ones(3))


def test_a_poolers_dropout_is_before_its_layer_and_needs_a_key():
    part = _pooling(take="first", dropout=0.5, dense=ef.Linear.Config())
    plain, first = twins.plain(part), np.asarray(X, np.float64)[:, 0]
    kept = np.asarray(jax.random.bernoulli(jax.random.key(3), 0.5, (3, DIM)))
    y = np.tanh(reference.linear(plain.dense, np.where(kept, 2 * first, 0.0)))
    close(part(X, key=jax.random.key(3)), y)
    close(part(X), np.tanh(reference.linear(plain.dense, first)))
    with pytest.raises(ValueError, match="`dropout` must be at least 0 and below 1; got 1.0."):
        ef.Pooling.Config(dropout=1.0)


def test_a_label_head_may_have_a_layer_and_a_norm_before_its_projection():
    config = ef.LabelHead.Config(2, dense=ef.Linear.Config(bias=False), norm=ef.LayerNorm.Config())
    part = _filled(lambda key: config.build(DIM, VOCAB, key=key))
    plain, x = twins.plain(part), np.asarray(X)[1]
    h = reference.norm(plain.norm, reference.activate("gelu", reference.linear(plain.dense, x)))
    close(part(X)[1], reference.linear(plain.linear, h))


def test_heads_for_labels_score_a_sequence_or_every_token():
    config = ef.SequenceHead.Config(labels=3, dropout=0.5)
    part = _filled(lambda key: config.build(DIM, VOCAB, key=key))
    plain, valid = twins.plain(part), jnp.asarray(VALID)
    first = np.stack([np.asarray(X)[i][VALID[i]][0] for i in range(3)])
    pooled = np.tanh(reference.linear(plain.pooling.dense, first))
    close(part(X, valid), reference.linear(plain.linear, pooled))
    assert not np.allclose(part(X, valid, key=jax.random.key(0)), part(X, valid))
    inside = config.edit("pooling", dropout=0.5).edit(dropout=0.0)
    inner = _filled(lambda key: inside.build(DIM, VOCAB, key=key))
    assert not np.allclose(inner(X, valid, key=jax.random.key(0)), inner(X, valid))
    every = _filled(lambda key: ef.LabelHead.Config(labels=2).build(DIM, VOCAB, key=key))
    close(every(X)[1], reference.linear(twins.plain(every).linear, np.asarray(X)[1]))


@pytest.mark.parametrize("config", [ef.SequenceHead.Config, ef.LabelHead.Config])
def test_a_head_needs_labels(config):
    with pytest.raises(ValueError, match="`labels` must be positive; got 0"):
        config(labels=0)
