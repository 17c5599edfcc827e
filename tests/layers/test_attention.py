"""Attention of every kind against a twin that goes head by head and query by query."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers import reference
from tests.helpers.compare import FLOAT32_TABLES, FLOAT64, assert_agrees, assert_close
from tests.helpers.hot import drawn, normal

BARE = ef.Linear.Config(bias=False)
VALID = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]], bool)  # padding on the left, on the right
KINDS = {
    "many heads": {},
    "grouped": {"kv_heads": 2},
    "one key head": {"kv_heads": 1},
    "head and value sizes of their own": {"head_dim": 5, "value_dim": 2, "kv_heads": 2},
    "full-width values summed": {"value_dim": 12, "out": ef.SumHeads(), "head_dim": 2},
    "heads side by side": {"out": ef.SumHeads()},
    "a bias on the keys alone": {"query": BARE, "value": BARE, "out": BARE},
    "biases but on the keys": {"key": BARE, "kv_heads": 2},
    "norm per head": {"qk_norm": ef.RMSNorm.Config(eps=0.1, offset=1.0), "kv_heads": 2},
    "norm over the projection": {
        "qk_norm": ef.LayerNorm.Config(eps=0.1),
        "qk_norm_over": "projection",
        "kv_heads": 2,
    },
    "a norm of its own for each head": {
        "qk_norm": ef.LayerNorm.Config(eps=0.1, bias=False),
        "qk_norm_over": "each_head",
        "kv_heads": 2,
    },
    "a norm without parameters": {"qk_norm": ef.LayerNorm.Config(0.1, False, False)},
    "clipped projections": {"clip": 0.9, "kv_heads": 2},
    "scale and soft-cap": {"scale": 0.3, "softcap": 1.5},
    "sinks": {"sinks": ef.Normal(1.0), "kv_heads": 2},
    "window": {"window": 2},
    "window on both sides": {"window": (1, 2)},
    "rotary": {"rotary": ef.Rotary(base=10.0), "head_dim": 4, "kv_heads": 2},
    "partial interleaved rotary": {
        "rotary": ef.Rotary(base=10.0, fraction=0.5, layout="interleaved"),
        "head_dim": 4,
    },
    "ALiBi": {"bias": ef.ALiBi.Config()},
    "ALiBi as in Falcon": {"bias": ef.ALiBi.Config(scale=0.5, rounding="bfloat16"), "head_dim": 4},
    "relative bias": {"bias": ef.RelativeBias.Config(6, 7)},
    "everything": {
        "kv_heads": 2,
        "head_dim": 6,
        "value_dim": 5,
        "window": (3, 1),
        "scale": 0.3,
        "softcap": 3.0,
        "sinks": ef.Normal(1.0),
        "qk_norm": ef.RMSNorm.Config(eps=0.1),
        "rotary": ef.Rotary(base=10.0),
        "bias": ef.RelativeBias.Config(6, 7),
    },
}


def attention(name, **options):
    return drawn(ef.Attention.Config(heads=4, **KINDS[name]), 12, **options)


def tolerance(name):
    return FLOAT32_TABLES if "rotary" in KINDS[name] else FLOAT64


# Most kinds are grouped beside what is their own.
@pytest.mark.parametrize("name", [n for n in KINDS if n != "grouped"])
def test_self_attention_equals_its_formula_in_value_and_gradient(name):
    mask = None if "window" in name else ef.Causal() & ef.Padding(jnp.asarray(VALID))
    causal = np.tril(np.ones((5, 5), bool))

    def twin(part, x):
        rows = [None if mask is None else causal & v for v in VALID]
        pairs = zip(x, rows, strict=True)
        return np.stack([reference.attention(part, row, allowed=a) for row, a in pairs])

    x = normal(1, 2, 5, 12)
    assert_agrees(lambda p, x: p(x, mask=mask), twin, attention(name), x, tolerance=tolerance(name))


@pytest.mark.parametrize("name", ["many heads", "norm per head", "everything"])
def test_cross_attention_to_a_source_of_another_width_equals_its_formula(name):
    """Windows and rotary positions are of self-attention, so a source is seen without them."""
    valid = np.array([[1, 1, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1]], bool)
    options = {k: v for k, v in KINDS[name].items() if k not in ("window", "rotary")}
    part = drawn(ef.Attention.Config(heads=4, **options), 12, source_dim=9)

    def twin(part, x, source):
        rows = zip(x, source, valid, strict=True)
        return np.stack(
            [reference.attention(part, a, b, allowed=np.tile(v, (5, 1))) for a, b, v in rows]
        )

    assert part.key.weight.shape[0] == part.value.weight.shape[0] == 9
    assert_agrees(
        lambda p, x, source: p(x, source, mask=ef.Padding(jnp.asarray(valid))),
        twin,
        part,
        normal(1, 2, 5, 12),
        normal(2, 2, 7, 9),
    )


@pytest.mark.parametrize("name", ["grouped", "everything"])
def test_a_bias_given_to_the_call_is_added_beside_the_parts_own(name):
    def twin(part, x, values):
        return reference.attention(part, x, bias=values)

    def run(part, x, values):
        return part(x, bias=ef.ExplicitBias(values))

    arguments = (attention(name), normal(1, 5, 12), normal(2, 4, 5, 5))
    assert_agrees(run, twin, *arguments, tolerance=tolerance(name))


def test_a_mask_per_head_hides_from_that_head_alone():
    allowed = np.random.default_rng(0).random((4, 5, 5)) < 0.6
    assert_agrees(
        lambda p, x: p(x, mask=ef.PerHead(jnp.asarray(allowed))),
        lambda p, x: reference.attention(p, x, allowed=allowed),
        attention("grouped"),
        normal(1, 5, 12),
    )


def test_rotary_positions_may_be_given_to_the_call():
    positions = np.array([7, 3, 3, 0, 12])
    assert_agrees(
        lambda p, x: p(x, positions=jnp.asarray(positions)),
        lambda p, x: reference.attention(p, x, positions=positions),
        attention("rotary"),
        normal(1, 5, 12),
        tolerance=FLOAT32_TABLES,
    )


@pytest.mark.parametrize("name", ["many heads", "scale and soft-cap", "everything"])
def test_weights_sum_to_one_and_reproduce_the_result(name):
    part, x, mask = attention(name), normal(1, 2, 5, 12), ef.Causal()

    @jax.jit
    def run(x):
        return part.weights(x, mask=mask), part(x, mask=mask), part.value(x)

    weights, y, values = (np.asarray(a, np.float64) for a in run(x))
    assert weights.shape == (2, 4, 5, 5)
    sums = weights.sum(-1)
    assert (sums < 1).all() if part.sinks is not None else np.allclose(sums, 1, atol=1e-6)
    assert not weights[..., *np.triu_indices(5, 1)].any()
    values = values.reshape(2, 5, -1, part.value_dim).repeat(4 // (part.config.kv_heads or 4), 2)
    mixed = np.einsum("bhqk,bkhv->bqhv", weights, values).reshape(2, 5, -1)
    plain = jax.tree.map(np.asarray, part.out)
    out = np.stack([reference.linear(plain, row) for row in mixed])
    np.testing.assert_allclose(y, out, atol=1e-4 * np.abs(out).max())


def test_weights_of_cross_attention_are_over_the_source():
    part = drawn(ef.Attention.Config(heads=4, kv_heads=2), 12, source_dim=9)
    x, source = normal(1, 5, 12), normal(2, 7, 9)
    allowed = np.arange(7) < 4
    mask = ef.Padding(jnp.asarray(allowed))
    weights = jax.jit(lambda x, source: part.weights(x, source, mask=mask))(x, source)
    plain = jax.tree.map(np.asarray, (part, x, source))
    expected = reference.attention_weights(*plain, allowed=np.tile(allowed, (5, 1)))
    np.testing.assert_allclose(weights, expected, atol=1e-5)


def test_dropout_of_weights_keeps_the_mean_and_needs_a_key():
    config = ef.Attention.Config(heads=4, kv_heads=2, dropout=0.3)
    part, x = drawn(config, 12), normal(1, 5, 12)

    @jax.jit
    def moments(keys):
        many = jax.vmap(lambda key: part(x, mask=ef.Causal(), key=key))(keys)
        return many.mean(0), many.std(0), part(x, mask=ef.Causal())

    mean, spread, expected = map(np.asarray, moments(jax.random.split(jax.random.key(3), 4000)))
    assert (spread > 0).all()
    assert (np.abs(mean - expected) < 5 * spread / np.sqrt(4000)).all()


def test_dropout_is_off_without_a_key_and_the_same_for_the_same_key():
    config = ef.Attention.Config(heads=4, dropout=0.3)
    part, x = drawn(config, 12), normal(1, 5, 12)
    run = jax.jit(lambda key: part(x, key=key))
    assert_close(run(None), jax.jit(drawn(ef.Attention.Config(heads=4), 12).__call__)(x), 1e-6)
    assert (run(jax.random.key(1)) == run(jax.random.key(1))).all()
    assert (run(jax.random.key(1)) != run(jax.random.key(2))).any()


def test_remembering_a_source_once_equals_giving_it_each_time():
    part = drawn(ef.Attention.Config(heads=4, qk_norm=ef.RMSNorm.Config()), 12, source_dim=9)
    x, source = normal(1, 2, 5, 12), normal(2, 2, 7, 9)
    mask = ef.Padding(jnp.asarray(np.arange(7) < np.array([[7], [3]])))

    @jax.jit
    def both(x, source):
        return part.look(x, part.remember(source), mask=mask), part(x, source, mask=mask)

    once, each = both(x, source)
    assert (once == each).all()


def test_what_is_for_places_in_one_sequence_is_refused_in_cross_attention():
    x, positions = normal(1, 5, 12), jnp.arange(5)
    for name in ("rotary", "window"):
        with pytest.raises(NotImplementedError, match=f"`{name}` is for self-attention"):
            attention(name)(x, x)
    with pytest.raises(ValueError, match="`positions` are for self-attention; got a `source`"):
        attention("many heads")(x, x, positions=positions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "`heads` must be positive; got 0."),
        ({"heads": 4, "kv_heads": 0}, "`kv_heads` must be positive; got 0."),
        ({"heads": 8, "kv_heads": 3}, "`kv_heads` must divide `heads`; got kv_heads=3, heads=8."),
        ({"heads": 4, "kv_heads": 8}, "`kv_heads` must divide `heads`; got kv_heads=8, heads=4."),
        ({"heads": 4, "head_dim": 0}, "`head_dim` must be positive; got 0."),
        ({"heads": 4, "dropout": 1.0}, "`dropout` must be at least 0 and below 1; got 1.0."),
        ({"heads": 4, "window": 0}, "`window` must be positive; got 0."),
        ({"heads": 4, "window": (-1, 2)}, "`window` must not be negative; got (-1, 2)."),
        ({"heads": 4, "softcap": 0.0}, "`softcap` must be positive, or None; got 0.0."),
        ({"heads": 4, "clip": -1.0}, "`clip` must be positive, or None; got -1.0."),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError) as error:
        ef.Attention.Config(**options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("dim", "options", "message"),
    [
        (
            10,
            {},
            "`heads` must divide the model's width; got heads=4, dim=10. "
            "Or set `head_dim`, which may be any size.",
        ),
        (
            12,
            {"rotary": ef.Rotary()},
            "Rotary positions turn pairs, so `head_dim * fraction` must be even and positive; "
            "got head_dim=3, fraction=1.0, that is 3.",
        ),
        (
            12,
            {"out": ef.SumHeads(), "head_dim": 2},
            "Without an output projection, `heads * value_dim` must be a multiple of the model's "
            "width; got 8 and 12. Set `value_dim` to that width, or to its share per head to lay "
            "the heads side by side.",
        ),
    ],
)
def test_settings_that_do_not_fit_the_width_are_refused(dim, options, message):
    with pytest.raises(ValueError) as error:
        ef.Attention(dim, heads=4, key=jax.random.key(0), **options)
    assert str(error.value) == message
