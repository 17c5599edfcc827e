"""Latent attention against a twin that makes every head's keys and values, and its small cache."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers import reference
from tests.helpers.compare import FLOAT32_TABLES, assert_agrees, assert_close
from tests.helpers.hot import drawn, normal

DIM, ROWS, SEQ = 8, 3, 6
SIZES = {"heads": 3, "latent": 7, "head_dim": 5, "rotary_dim": 2}
BIASED = ef.Linear.Config()
KINDS = {
    "queries from the token": {},
    "queries from a latent": {"query_latent": 4},
    "halves, values of their own size": {
        "rotary": ef.Rotary(base=10.0),
        "rotary_dim": 4,
        "value_dim": 2,
    },
    "everything": {
        "query_latent": 4,
        "value_dim": 4,
        "scale": 0.3,
        "norm": ef.LayerNorm.Config(eps=0.1),
        "rotary": ef.Rotary(base=10.0, layout="interleaved", scaling=ef.LinearScaling(2.0)),
        **dict.fromkeys(("to_query_latent", "to_latent", "rotary_key", "value", "out"), BIASED),
    },
}
VALID = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]], bool)


@functools.cache
def part(name):
    return drawn(ef.LatentAttention.Config(**{**SIZES, **KINDS[name]}), DIM)


@pytest.mark.parametrize("name", KINDS)
def test_latent_attention_equals_its_formula_in_value_and_gradient(name):
    mask, causal = ef.Causal() & ef.Padding(jnp.asarray(VALID)), np.tril(np.ones((SEQ, SEQ), bool))

    def twin(part, x):
        rows = zip(x, VALID, strict=True)
        return np.stack([reference.latent_attention(part, r, allowed=causal & v) for r, v in rows])

    x = normal(1, ROWS, SEQ, DIM)
    assert_agrees(lambda p, x: p(x, mask=mask), twin, part(name), x, tolerance=FLOAT32_TABLES)


def test_positions_and_a_shared_bias_may_be_given_to_the_call():
    positions = np.array([7, 3, 3, 0, 12, 1])
    assert_agrees(
        lambda p, x, b: p(x, positions=jnp.asarray(positions), bias=ef.ExplicitBias(b)),
        lambda p, x, b: reference.latent_attention(p, x, positions=positions, bias=b),
        part("queries from a latent"),
        normal(1, SEQ, DIM),
        normal(2, 3, SEQ, SEQ),
        tolerance=FLOAT32_TABLES,
    )


class ByPlace(ef.PositionBias):
    """A score that goes by the place of the key alone."""

    @property
    def counts_places(self):
        return True

    def __call__(self, queries, keys):
        shape = (*keys.shape[:-1], 3, queries.shape[-1], keys.shape[-1])
        return jnp.broadcast_to(jnp.sin(keys.astype(jnp.float32))[..., None, None, :], shape)


def test_to_a_shared_bias_by_places_padding_is_no_place():
    made, x, valid = part("everything"), np.asarray(normal(0, 2, SEQ, DIM)), jnp.asarray(VALID[:2])

    @eqx.filter_jit
    def run(x, mask, positions=None):
        return made(x, mask=mask, positions=positions, bias=ByPlace())

    padded = np.asarray(run(x, ef.Causal() & ef.Padding(valid)))
    alone = run(x[0, 2:], ef.Causal())
    assert_close(padded[0, 2:], alone, 1e-5)
    told = run(x[0, 2:], ef.Causal(), np.arange(4) + 2)
    padding = ef.Padding(jnp.asarray(VALID[0]))
    expected = np.asarray(run(x[0], ef.Causal() & padding, np.arange(SEQ)))
    assert_close(told, expected[2:], 1e-5)
    assert not np.allclose(told, alone, atol=1e-3)


@eqx.filter_jit
def step(part, x, valid, cache):
    return part.run(x, mask=ef.Causal() & ef.Padding(valid), cache=cache)


@eqx.filter_jit
def uncached(part, x, valid):
    return part(x, mask=ef.Causal() & ef.Padding(valid))


@pytest.mark.parametrize("chunks", [(4, 1, 1), (SEQ,)], ids=str)
def test_a_cache_changes_nothing_for_rows_padded_on_either_side(chunks):
    """A row padded on the left starts at position 0 too, as the cache counts it."""
    name, x, outputs, start = "everything", np.asarray(normal(0, ROWS, SEQ, DIM)), [], 0
    cache = part(name).init_cache((ROWS,), SEQ)
    for size in chunks:
        at = slice(start, start + size)
        y, cache = step(part(name), x[:, at], VALID[:, at], cache)
        outputs.append(y)
        start += size
    got = np.concatenate(outputs, axis=1)
    assert cache.length.tolist() == VALID.sum(1).tolist()
    for row in range(ROWS):
        alone = uncached(part(name), x[row][VALID[row]], np.ones(VALID[row].sum(), bool))
        assert_close(got[row][VALID[row]], alone, 1e-5)


def test_a_cache_holds_one_latent_and_one_rotated_key_for_all_heads():
    cache = part("queries from a latent").init_cache((5,), 9, jnp.bfloat16)
    assert cache.keys.shape == (5, 1, 9, 2)
    assert cache.values.shape == (5, 1, 9, 7)
    assert sum(a.nbytes for a in jax.tree.leaves(cache)) == 5 * (9 * (2 + 7) * 2 + 4)


def test_a_cache_without_room_is_an_error_or_nan():
    attention = part("queries from the token")
    cache = attention.init_cache((1,), 2)
    with pytest.raises(ValueError, match="cache has 2 slots and would have to hold 3"):
        attention.run(normal(0, 1, 3, DIM), cache=cache)
    y, _ = step(attention, normal(0, 1, 3, DIM), np.ones((1, 3), bool), cache)
    assert np.isnan(y).all()


def test_a_nan_in_padding_leaks_nowhere():
    x = np.where(VALID[..., None], normal(0, ROWS, SEQ, DIM), np.float32(np.nan))
    y = np.asarray(uncached(part("everything"), x, VALID))
    assert np.isfinite(y[VALID]).all()


def test_dropout_of_weights_needs_a_key():
    attention = drawn(ef.LatentAttention.Config(**SIZES, dropout=0.5), DIM)
    x = normal(0, SEQ, DIM)
    run = eqx.filter_jit(lambda key: attention(x, key=key))
    assert_close(run(None), jax.jit(part("queries from the token").__call__)(x), 1e-6)
    assert not np.allclose(run(None), run(jax.random.key(0)))


def test_every_parameter_has_its_axes_and_size():
    axes = ef.leaf_axes(part("queries from a latent"))
    sizes = {"dim": 8, "query_latent": 4, "latent": 7, "rotary_dim": 2}
    sizes |= {"heads*head_dim": 15, "heads*plain_dim": 9, "heads*value_dim": 9}
    for path, leaf in ef.named_arrays(part("queries from a latent")).items():
        assert leaf.shape == tuple(sizes[word] for word in axes[path]), path
    bare = ef.leaf_axes(part("queries from the token"))
    assert bare["query.weight"] == ("dim", "heads*head_dim")
    words = {word for found in axes.values() for each in found for word in each.split("*")}
    assert words <= set(ef.GLOSSARY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 0}, "`latent` must be positive; got 0."),
        ({"query_latent": 0}, "`query_latent` must be positive; got 0."),
        (
            {"head_dim": 2},
            "`head_dim` counts the rotated numbers too and must be above `rotary_dim`; "
            "got head_dim=2, rotary_dim=2.",
        ),
        (
            {"rotary_dim": 3},
            "Rotary positions turn pairs, so `head_dim * fraction` must be even and positive; "
            "got head_dim=3, fraction=1.0, that is 3.",
        ),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError) as error:
        ef.LatentAttention.Config(**{**SIZES, **options})
    assert str(error.value) == message
