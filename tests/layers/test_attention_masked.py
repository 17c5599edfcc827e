"""What attention must not see: padding, other sequences, the future, and NaN where nobody looks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers.compare import assert_close, same_bits
from tests.helpers.hot import drawn, normal

SEQ = 6
FULL = ef.Attention.Config(
    heads=4, kv_heads=2, head_dim=4, rotary=ef.Rotary(base=10.0), sinks=ef.Normal(1.0), softcap=3.0
)
CONFIGS = {"plain": ef.Attention.Config(heads=4), "rotary, sinks, soft-cap": FULL}


def all_but(shape, place):
    """True everywhere but at this place of the first axes."""
    allowed = np.ones(shape, bool)
    allowed[place] = False
    return allowed


NOTHING = {
    "all padding": ef.Padding(jnp.asarray(np.array([[1] * SEQ, [0] * SEQ], bool))),
    "before left padding ends": ef.Causal()
    & ef.Padding(jnp.asarray(np.array([[0] * 2 + [1] * 4, [1] * 6], bool))),
    "an empty row of an array": ef.Explicit(jnp.asarray(all_but((2, SEQ, SEQ), (1, 3)))),
    "nothing for one head": ef.PerHead(jnp.asarray(all_but((2, 4, SEQ, SEQ), (0, 2)))),
}


@eqx.filter_jit
def run(part, x, mask, positions=None):
    return part(x, mask=mask, positions=positions)


@eqx.filter_jit
def gradients(part, x, mask, kept):
    """Of a loss over the kept outputs, for the parameters and the input."""

    def loss(arguments):
        part, x = arguments
        return jnp.where(kept[..., None], jnp.sin(part(x, mask=mask)), 0.0).sum()

    return eqx.filter_grad(loss)((part, x))


@pytest.mark.parametrize("backend", ["plain", "xla"])
@pytest.mark.parametrize("name", NOTHING)
def test_a_query_that_sees_nothing_gets_zeros_and_finite_gradients(name, backend):
    mask, x = NOTHING[name], normal(0, 2, 4, SEQ, 3)
    allowed = np.broadcast_to(mask.allows(jnp.arange(SEQ), jnp.arange(SEQ)), (2, 4, SEQ, SEQ))
    blind = ~allowed.any(-1)
    assert blind.any()

    def attend(query):
        y = ef.attend(query, x, x, scoring=ef.Scoring(0.5), mask=mask, backend=backend)
        return jnp.sin(y).sum(), y

    with jax.numpy_dtype_promotion("standard"):  # the gradient of JAX's own kernel needs it
        (_, y), gradient = jax.jit(jax.value_and_grad(attend, has_aux=True))(x)
    assert not np.asarray(y)[blind].any()
    assert not np.asarray(gradient)[blind].any()
    assert np.abs(np.asarray(y)[~blind]).min() > 0
    assert np.isfinite(y).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_of_padding_alone_leaves_finite_gradients(name):
    part, x = drawn(CONFIGS[name], 12), normal(1, 2, SEQ, 12)
    mask = ef.Causal() & NOTHING["all padding"]
    found = gradients(part, x, mask, jnp.ones((2, SEQ), bool))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(found))


def test_a_nan_in_padding_leaks_neither_into_values_nor_into_gradients():
    """Planted in the keys and values of a remembered source, in padded places."""
    part = drawn(ef.Attention.Config(heads=4, kv_heads=2), 12, source_dim=9)
    source = part.remember(normal(1, 2, 5, 9))

    @eqx.filter_jit
    def both(source, valid):
        def loss(arguments):
            part, x, source = arguments
            y = part.look(x, source, mask=ef.Padding(valid))
            return jnp.sin(y).sum(), y

        return eqx.filter_value_and_grad(loss, has_aux=True)((part, normal(0, 2, SEQ, 12), source))

    for places in ([0, 0, 1, 1, 1], [1, 1, 1, 1, 0], [1, 0, 1, 0, 1]):
        valid = np.array(places, bool)
        (_, clean), clean_gradients = both(source, jnp.asarray(valid))
        for poison in (np.nan, np.inf, 1e30):
            planted = jax.tree.map(
                lambda a: np.where(valid[:, None], a, np.float32(poison)),  # noqa: B023
                source,
            )
            (_, y), found = both(planted, jnp.asarray(valid))
            assert same_bits(y, clean)
            assert_close(found, clean_gradients, 1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_nan_at_a_padded_token_stays_there(name):
    part, x = drawn(CONFIGS[name], 12), normal(1, 2, SEQ, 12)
    valid = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], bool)
    mask = ef.Causal() & ef.Padding(jnp.asarray(valid))
    y = run(part, jnp.where(valid[..., None], x, jnp.nan), mask)
    assert (np.asarray(y)[valid] == np.asarray(run(part, x, mask))[valid]).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_on_either_side_equals_the_sequence_alone(name):
    part, x = drawn(CONFIGS[name], 12), normal(1, 4, 12)
    alone = np.asarray(run(part, x, ef.Causal()))
    for before, after in [(2, 0), (0, 2), (1, 1)]:
        padded = np.concatenate([normal(2, before, 12), x, normal(3, after, 12)])
        valid = jnp.asarray([False] * before + [True] * 4 + [False] * after)
        y = np.asarray(run(part, padded, ef.Causal() & ef.Padding(valid)))
        assert_close(y[before : before + 4], alone, 1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_sequences_equal_separate_ones(name):
    """With positions that restart, though only distances matter, which never cross a border."""
    part, lengths = drawn(CONFIGS[name], 12), (2, 1, 1, 2)
    pieces = [normal(i, n, 12) for i, n in enumerate(lengths)]
    ids = jnp.asarray(np.repeat(np.arange(4), lengths))
    restarted = np.concatenate([np.arange(n) for n in lengths])
    mask = ef.Causal() & ef.Segments(ids)
    apart = np.concatenate([run(part, piece, ef.Causal()) for piece in pieces])
    for positions in (restarted, None):
        assert_close(run(part, np.concatenate(pieces), mask, positions), apart, 1e-5)


@pytest.mark.parametrize(
    ("mask", "seen"),
    [
        (ef.Causal(), lambda q, k: k <= q),
        (ef.Causal() & ef.Window(2, 0), lambda q, k: q - 2 <= k <= q),
        (ef.Prefix(3), lambda q, k: k <= q or k < 3),
        (
            ef.Segments(jnp.array([0, 0, 1, 1, 1, 0])),
            lambda q, k: (q in (2, 3, 4)) == (k in (2, 3, 4)),
        ),
    ],
    ids=["causal", "window", "prefix", "segments"],
)
def test_an_output_depends_on_exactly_the_tokens_its_mask_allows(mask, seen):
    part, x = drawn(ef.Attention.Config(heads=4), 12), normal(1, SEQ, 12)
    slopes = jax.jit(jax.jacobian(lambda x: part(x, mask=mask).sum(-1)))(x)
    reaches = np.abs(slopes).max(-1) > 1e-6
    expected = [[seen(q, k) for k in range(SEQ)] for q in range(SEQ)]
    np.testing.assert_array_equal(reaches, expected)


@pytest.mark.parametrize("window", [1, 3, (2, 1), (0, 2)])
def test_a_window_of_the_config_counts_the_query_itself(window):
    part = drawn(ef.Attention.Config(heads=4, window=window), 12)
    left, right = (window - 1, 0) if isinstance(window, int) else window
    weights = np.asarray(part.weights(normal(1, SEQ, 12)))
    expected = [[q - left <= k <= q + right for k in range(SEQ)] for q in range(SEQ)]
    np.testing.assert_array_equal((weights > 0).all(0), expected)


def test_a_mask_per_row_of_the_batch_spreads_over_batches_of_batches():
    part, x = drawn(ef.Attention.Config(heads=4), 12), normal(1, 3, 2, SEQ, 12)
    mask = ef.Padding(jnp.asarray([[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1]], bool))
    y = run(part, x, mask)
    for found, row in zip(np.asarray(y), np.asarray(x), strict=True):
        assert_close(found, run(part, row, mask), 1e-6)
