"""The cache changes no result: any chunks, padding on any side, windows, and room that runs out."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eqxformer as ef
from tests.helpers.compare import assert_close, same_bits
from tests.helpers.hot import drawn, normal

ROWS, SEQ = 3, 8
EVERY = np.ones((ROWS, SEQ), bool)
BASE = ef.Attention.Config(
    heads=4, kv_heads=2, head_dim=4, value_dim=3, rotary=ef.Rotary(base=10.0)
)
CONFIGS = {
    "full": BASE,
    "ALiBi, sinks": BASE.edit(rotary=None, bias=ef.ALiBi.Config(), sinks=ef.Normal(1.0)),
    "relative bias, one key head": BASE.edit(
        rotary=None, kv_heads=1, bias=ef.RelativeBias.Config(6, 7, "causal")
    ),
    "ring": BASE.edit(window=3),
    "ring of one": BASE.edit(window=1),
    "ring with a pair": BASE.edit(window=(4, 1)),
    "window as long as the text": BASE.edit(window=SEQ),
    "window longer than the text": BASE.edit(window=SEQ + 3),
}


@functools.cache
def part(name):
    return drawn(CONFIGS[name], 12)


@eqx.filter_jit
def uncached(part, x, valid):
    return part(x, mask=ef.Causal() & ef.Padding(valid))


@eqx.filter_jit
def step(part, x, valid, cache):
    mask = ef.Causal() if valid is None else ef.Causal() & ef.Padding(valid)
    return part.run(x, mask=mask, cache=cache)


def in_chunks(part, x, valid, chunks, slots=SEQ):
    """The outputs of calls with so many tokens each, and the cache after them."""
    x, valid = np.asarray(x), None if valid is None else np.asarray(valid)
    cache, outputs, start = part.init_cache(x.shape[:-2], slots), [], 0
    for size in chunks:
        piece = None if valid is None else valid[..., start : start + size]
        y, cache = step(part, x[..., start : start + size, :], piece, cache)
        outputs.append(y)
        start += size
    return np.concatenate(outputs, axis=-2), cache


def packed_to_the_left(x, valid):
    """The real tokens of every row without gaps, then padding: the row as the cache counts it."""
    order = np.argsort(~valid, axis=-1, kind="stable")
    return np.take_along_axis(x, order[..., None], -2), np.take_along_axis(valid, order, -1)


@pytest.mark.parametrize("chunks", [(1,) * SEQ, (3, 3, 1, 1), (SEQ,)], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_cache_changes_nothing_for_these_chunks(name, chunks):
    x = normal(0, ROWS, SEQ, 12)
    got, _ = in_chunks(part(name), x, None, chunks)
    assert_close(got, uncached(part(name), x, EVERY), 1e-5)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", ["full", "ring", "ALiBi, sinks"])
def test_a_cache_changes_nothing_for_any_chunks_and_padding(name, data):
    """Padding may stand anywhere: it is not written, and nobody counts it."""
    sizes = st.lists(st.sampled_from([1, 3]), min_size=SEQ, max_size=SEQ)
    chunks = [c for c in np.diff([0, *np.minimum(np.cumsum(data.draw(sizes)), SEQ)]) if c]
    bits = st.lists(st.booleans(), min_size=ROWS * SEQ, max_size=ROWS * SEQ)
    valid = np.array(data.draw(bits)).reshape(ROWS, SEQ)
    x = np.asarray(normal(1, ROWS, SEQ, 12))
    x = np.where(valid[..., None], x, np.nan)
    got, cache = in_chunks(part(name), x, valid, chunks)
    rows, real = packed_to_the_left(np.nan_to_num(x), valid)
    expected = np.asarray(uncached(part(name), rows, real))
    assert_close(got[valid], expected[real], 1e-5)
    assert cache.length.tolist() == valid.sum(-1).tolist()


@pytest.mark.parametrize("name", ["full", "ring"])
def test_left_and_right_padded_rows_continue_as_if_alone(name):
    """A prompt padded to 5 tokens, then a token at a time."""
    lengths, x = [2, 5, 3], np.asarray(normal(2, ROWS, SEQ, 12))
    alone = [np.asarray(uncached(part(name), row, np.ones(SEQ, bool))) for row in x]
    for side in ("left", "right"):
        prompt, valid = np.zeros((ROWS, 5, 12), np.float32), np.zeros((ROWS, 5), bool)
        for i, n in enumerate(lengths):
            at = slice(5 - n, 5) if side == "left" else slice(0, n)
            prompt[i, at], valid[i, at] = x[i, :n], True
        y, cache = step(part(name), prompt, valid, part(name).init_cache((ROWS,), SEQ))
        for i, n in enumerate(lengths):
            assert_close(np.asarray(y)[i][valid[i]], alone[i][:n], 1e-5)
        for t in range(3):
            next_tokens = np.stack([x[i, n + t] for i, n in enumerate(lengths)])[:, None]
            y, cache = step(part(name), next_tokens, None, cache)
            for i, n in enumerate(lengths):
                assert_close(np.asarray(y)[i, 0], alone[i][n + t], 1e-5)


@pytest.mark.parametrize("name", ["full", "ring"])
def test_vmap_over_rows_with_their_caches_equals_the_batch(name):
    attention, x = part(name), normal(0, ROWS, 3, 12)
    cache = attention.init_cache((ROWS,), SEQ)

    @eqx.filter_jit
    def mapped(x, cache):
        run = eqx.filter_vmap(lambda x, c: attention.run(x, mask=ef.Causal(), cache=c))
        return run(x, cache)

    for _ in range(2):
        y, after = step(part(name), x, None, cache)
        each, cache = mapped(x, cache)
        assert_close((each, cache), (y, after), 1e-5)


def test_batches_of_batches_have_caches_too():
    x, one = np.asarray(normal(0, 2, ROWS, 4, 12)), part("full").init_cache((), SEQ)
    y, cache = step(part("full"), x, None, part("full").init_cache((2, ROWS), SEQ))
    assert cache.length.shape == (2, ROWS)
    assert_close(np.asarray(y)[1, 2], step(part("full"), x[1, 2], None, one)[0], 1e-5)


@pytest.mark.parametrize(
    ("name", "slots", "expected"), [("full", 100, 100), ("ring", 100, 3), ("ring", 2, 2)]
)
def test_a_cache_has_the_size_it_says_in_bytes(name, slots, expected):
    """Two key heads of 4 and value heads of 3, two bytes each, and a length of four bytes."""
    cache = part(name).init_cache((5,), slots, jnp.bfloat16)
    assert cache.keys.shape == (5, 2, expected, 4)
    assert cache.values.shape == (5, 2, expected, 3)
    assert sum(a.nbytes for a in jax.tree.leaves(cache)) == 5 * (2 * expected * (4 + 3) * 2 + 4)
    assert isinstance(cache, ef.RingCache) == (expected == 3)


def test_a_cache_in_bfloat16_under_numbers_in_float32_is_as_good_as_its_type():
    x, cache = normal(0, ROWS, SEQ, 12), part("full").init_cache((ROWS,), SEQ, jnp.bfloat16)
    y, cache = step(part("full"), x, None, cache)
    assert y.dtype == jnp.float32
    assert cache.keys.dtype == jnp.bfloat16
    assert_close(y, uncached(part("full"), x, EVERY), 0.05)


def test_no_room_is_an_error_when_it_can_be_seen():
    cache = part("full").init_cache((2,), 4)
    message = (
        "The cache has 4 slots and would have to hold 5 tokens; make it with a larger `slots`."
    )
    with pytest.raises(ValueError) as error:
        cache.extend(jnp.ones((2, 2, 5, 4)), jnp.ones((2, 2, 5, 3)), None)
    assert str(error.value) == message
    with pytest.raises(ValueError, match="`slots` must be positive; got 0."):
        part("full").init_cache((2,), 0)


def test_under_jit_a_row_without_room_is_nan_from_then_on_and_its_last_slot_stays():
    x, valid = normal(0, ROWS, SEQ, 12), EVERY.copy()
    valid[1:, 3:] = False  # the other rows stop after three tokens
    _, before = in_chunks(part("full"), x, valid, (3, 1), slots=4)
    y, cache = in_chunks(part("full"), x, valid, (3, 1, 3, 1), slots=4)
    expected = np.asarray(uncached(part("full"), x, valid))
    assert_close(y[0, :4], expected[0, :4], 1e-5)
    assert np.isnan(y[0, 4:]).all()
    assert_close(y[1:, :3], expected[1:, :3], 1e-5)
    assert np.isfinite(y[1:]).all()
    assert same_bits((cache.keys, cache.values), (before.keys, before.values))


def test_a_ring_never_runs_out_of_room():
    x = normal(0, ROWS, 24, 12)
    y, cache = in_chunks(part("ring"), x, None, (3,) * 8)
    assert_close(y, uncached(part("ring"), x, np.ones((ROWS, 24), bool)), 1e-5)
    assert cache.keys.shape[-2] == 3
    assert cache.length.tolist() == [24] * ROWS


def test_a_source_cache_is_computed_once_and_holds_what_a_call_would_compute():
    cross = drawn(
        ef.Attention.Config(heads=4, kv_heads=2, head_dim=4, value_dim=3), 12, source_dim=9
    )
    cache = cross.remember(normal(0, 2, 7, 9))
    assert cache.keys.shape == (2, 2, 7, 4)
    assert cache.values.shape == (2, 2, 7, 3)
    program = jax.jit(lambda x: cross.look(x, cache)).lower(normal(1, 2, 1, 12)).as_text()
    assert program.count(" stablehlo.dot_general ") == 4  # queries, scores, mixing, output


@pytest.mark.parametrize(
    "config",
    [BASE, ef.LatentAttention.Config(2, latent=5, head_dim=6, rotary_dim=2)],
    ids=["heads", "latent"],
)
def test_without_a_mask_every_token_looks_at_all_that_the_cache_holds(config):
    x, free = np.asarray(normal(0, ROWS, 5, 12)), drawn(config, 12)
    _, cache = step(free, x[:, :2], None, free.init_cache((ROWS,), SEQ))
    y, _ = eqx.filter_jit(lambda part, x, cache: part.run(x, cache=cache))(free, x[:, 2:], cache)
    assert_close(y, eqx.filter_jit(free)(x)[:, 2:], 1e-5)


def test_gradients_flow_through_a_cache():
    attention, x = part("full"), normal(0, ROWS, SEQ, 12)

    def loss(x, cached):
        if not cached:
            return jnp.sin(attention(x, mask=ef.Causal())).sum()
        cache, total = attention.init_cache((ROWS,), SEQ), 0.0
        for start in (0, 5):
            y, cache = attention.run(x[:, start : start + 5], mask=ef.Causal(), cache=cache)
            total += jnp.sin(y).sum()
        return total

    found, expected = (jax.jit(jax.grad(lambda x, c=c: loss(x, c)))(x) for c in (True, False))
    assert_close(found, expected, 1e-5)


# Going back


def emptied(part, spare, batch=(ROWS,)):
    return part.init_cache(batch, SEQ).emptied(spare)


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_taken_back_leave_no_trace(name):
    """After 3 tokens, 3 others of which rows keep 2, 0 and 1; what follows sees the rest alone."""
    x, wrong = (np.asarray(normal(i, ROWS, SEQ, 12)) for i in (0, 1))
    kept = np.array([5, 3, 4])
    _, cache = step(part(name), x[:, :3], None, emptied(part(name), 3))
    right = np.arange(3, 6)[None] < kept[:, None]
    _, cache = step(part(name), np.where(right[..., None], x[:, 3:6], wrong[:, 3:6]), None, cache)
    cache = cache.back_to(jnp.asarray(kept))
    whole = np.asarray(uncached(part(name), x, EVERY))
    for _ in range(2):  # one token, which needs the oldest of the window, and one after it
        at = np.asarray(cache.length)[:, None, None]
        rest, expected = (np.take_along_axis(a, at, axis=1) for a in (x, whole))
        y, cache = step(part(name), rest, None, cache)
        assert_close(y, expected, 1e-5)


def test_only_a_ring_that_goes_back_has_more_slots_and_as_many_as_it_says():
    for spare in (0, 2, 5):
        assert emptied(part("ring"), spare).keys.shape[-2] == 3 + spare
        assert emptied(part("ring"), 7).emptied(spare).keys.shape[-2] == 3 + spare
        assert emptied(part("full"), spare).keys.shape[-2] == SEQ
    _, cache = step(part("ring"), normal(0, ROWS, 3, 12), None, emptied(part("ring"), 3))
    assert cache.spare == 3
    for empty in (cache.emptied(3), emptied(part("ring"), 3)):
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(empty))


def test_going_back_to_more_tokens_than_there_are_changes_nothing():
    for name in ("full", "ring"):
        _, cache = step(part(name), normal(0, ROWS, 3, 12), None, emptied(part(name), 3))
        assert same_bits(cache.back_to(jnp.array([3, 4, 100])), cache)


def test_going_back_further_than_a_ring_can_is_an_error_or_nan_in_its_own_row():
    x = np.asarray(normal(0, ROWS, 5, 12))
    _, cache = step(part("ring"), x[:, :3], None, emptied(part("ring"), 3))
    _, cache = step(part("ring"), x[:, 3:4], None, cache)
    with pytest.raises(ValueError, match="with spare=3 can go back by 3 tokens"):
        cache.back_to(jnp.array([4, 0, 1]))
    cache = jax.jit(lambda cache, to: cache.back_to(to))(cache, jnp.array([4, 0, 1]))
    for _ in range(2):
        y, cache = step(part("ring"), x[:, 4:], None, cache)
        assert np.isnan(y[1]).all()
        assert np.isfinite(np.asarray(y)[[0, 2]]).all()
    plain = part("ring").init_cache((ROWS,), SEQ)
    with pytest.raises(ValueError, match="with spare=0 can go back by 0 tokens; make it with"):
        jax.jit(lambda cache: cache.back_to(jnp.array(0)))(plain)


def test_a_cache_of_ones_own_says_what_it_lacks_to_go_back():
    class Own(ef.Cache):
        def places(self, seq, valid):
            raise AssertionError

        extend = poison = places

    for name, argument in {"emptied": 2, "back_to": jnp.array(2)}.items():
        with pytest.raises(NotImplementedError, match=f"Own must define `{name}` to go back"):
            getattr(Own(), name)(argument)
