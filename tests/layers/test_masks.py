"""Masks as descriptions against a double loop, their drawings, and what `&` joins."""

import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eqxformer as ef
from eqxformer.layers import masks
from eqxformer.layers.masked_calls import check_batch, for_cache, reads_places
from eqxformer.layers.masks import ordered, parts, valid_keys
from tests.helpers.hot import drawn, normal

SEQ, KEYS = 5, 5
VALID = np.array([[0, 1, 1, 0, 1], [1, 1, 1, 0, 0]], bool)
IDS = np.array([[0, 0, 1, 1, 2], [4, 4, 4, 4, 4]])
LENGTHS = np.array([3, 0])
ALLOWED = np.random.default_rng(0).random((2, SEQ, KEYS)) < 0.5
PER_HEAD = np.random.default_rng(1).random((2, 3, SEQ, KEYS)) < 0.5
PLAIN = {  # a description, and whether query q of row b may look at key k
    "full": (ef.Full(), lambda b, h, q, k: True),
    "causal": (ef.Causal(), lambda b, h, q, k: k <= q),
    "window to the left": (ef.Window(2, 0), lambda b, h, q, k: q - 2 <= k <= q),
    "window on both sides": (ef.Window(1, 2), lambda b, h, q, k: q - 1 <= k <= q + 2),
    "a window of itself": (ef.Window(0, 0), lambda b, h, q, k: k == q),
    "prefix of three": (ef.Prefix(3), lambda b, h, q, k: k <= q or k < 3),
}
ROWS = {
    "padding": (ef.Padding(jnp.asarray(VALID)), lambda b, h, q, k: VALID[b, k]),
    "segments": (ef.Segments(jnp.asarray(IDS)), lambda b, h, q, k: IDS[b, q] == IDS[b, k]),
    "segments of a source": (
        ef.Segments(jnp.asarray(IDS), jnp.asarray(IDS[::-1])),
        lambda b, h, q, k: IDS[b, q] == IDS[1 - b, k],
    ),
    "a prefix per row": (
        ef.Prefix(jnp.asarray(LENGTHS)),
        lambda b, h, q, k: k <= q or k < LENGTHS[b],
    ),
    "explicit": (ef.Explicit(jnp.asarray(ALLOWED)), lambda b, h, q, k: ALLOWED[b, q, k]),
    "per head": (ef.PerHead(jnp.asarray(PER_HEAD)), lambda b, h, q, k: PER_HEAD[b, h, q, k]),
}
CASES = {**PLAIN, **ROWS}
PLACES = jnp.arange(SEQ)


def spread(allowed):
    return np.broadcast_to(allowed, (2, 3, SEQ, KEYS))


def looped(rule):
    every = [
        (b, h, q, k) for b in range(2) for h in range(3) for q in range(SEQ) for k in range(KEYS)
    ]
    return np.array([bool(rule(*place)) for place in every]).reshape(2, 3, SEQ, KEYS)


@pytest.mark.parametrize("name", CASES)
def test_a_description_equals_a_double_loop(name):
    mask, rule = CASES[name]
    np.testing.assert_array_equal(spread(mask.allows(PLACES, PLACES)), looped(rule))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(sorted(CASES)), min_size=2, max_size=4))
def test_and_allows_what_all_allow(names):
    joined = CASES[names[0]][0]
    for name in names[1:]:
        joined = joined & CASES[name][0]
    expected = np.all([looped(CASES[name][1]) for name in names], axis=0)
    np.testing.assert_array_equal(spread(joined.allows(PLACES, PLACES)), expected)
    assert len(parts(joined)) == len(names)


@pytest.mark.parametrize("name", ROWS)
def test_vmap_over_the_rows_of_a_mask_equals_the_batch(name):
    mask = ROWS[name][0] & ef.Causal()
    mapped = jax.vmap(lambda m: m.allows(PLACES, PLACES))(mask)
    np.testing.assert_array_equal(spread(mapped), spread(mask.allows(PLACES, PLACES)))


@pytest.mark.parametrize("name", PLAIN)
def test_places_need_not_start_at_zero_nor_be_in_order(name):
    queries, keys = np.array([[7], [2]]), np.array([[0, 6, 7, 9, 2], [3, 2, 0, 5, 1]])
    mask, rule = PLAIN[name]
    got = np.asarray(mask.allows(jnp.asarray(queries), jnp.asarray(keys)))
    for b in range(2):
        expected = [rule(b, 0, queries[b, 0], k) for k in keys[b]]
        assert got[b, 0, 0].tolist() == expected


def test_drawings_are_exact():
    assert ef.Causal().draw(3) == "■ · ·\n■ ■ ·\n■ ■ ■"
    assert ef.Full().draw(2, 3) == "■ ■ ■\n■ ■ ■"
    assert ef.Window(1, 0).draw(4) == "■ · · ·\n■ ■ · ·\n· ■ ■ ·\n· · ■ ■"
    assert ef.Window(1, 1).draw(3) == "■ ■ ·\n■ ■ ■\n· ■ ■"
    assert (ef.Causal() & ef.Padding(jnp.array([False, True]))).draw(2) == "· ·\n· ■"
    assert ef.Padding(jnp.array([[False, True], [True, False]])).draw(1, 2) == "· ■\n\n■ ·"
    assert str(ef.Prefix(2).draw(3)) == "■ ■ ·\n■ ■ ·\n■ ■ ■"


@pytest.mark.parametrize(
    ("kind", "mask", "sizes"),
    [
        (ef.Full, ef.Full(), (3,)),
        (ef.Causal, ef.Causal(), (3,)),
        (ef.Padding, ef.Padding(jnp.array([False, True, True])), (3,)),
        (ef.Segments, ef.Segments(jnp.array([0, 0, 1])), (3,)),
        (ef.Prefix, ef.Prefix(2), (4,)),
    ],
)
def test_the_drawing_in_a_docstring_is_the_masks_own(kind, mask, sizes):
    lines = [line.strip() for line in inspect.getdoc(kind).splitlines()]
    drawn = [line for line in lines if line and set(line) <= set("■· ")]
    assert "\n".join(drawn) == mask.draw(*sizes)
    assert textwrap.dedent(masks.__doc__).count(ef.Causal().draw(1)) > 0


@pytest.mark.usefixtures("unchecked")
def test_masks_of_one_call_refuse_other_lengths():
    for name, what in [
        ("padding", "Padding.valid"),
        ("explicit", "Explicit.allowed"),
        ("per head", "PerHead.allowed"),
    ]:
        message = f"`{what}` describes 5 keys; this call has 6."
        with pytest.raises(ValueError, match=message):
            ROWS[name][0].allows(PLACES, jnp.arange(6))
    with pytest.raises(
        ValueError, match="`Segments.query_ids` describes 5 queries; this call has 4."
    ):
        ROWS["segments"][0].allows(jnp.arange(4), PLACES)


@pytest.mark.parametrize(
    ("mask", "batch", "message"),
    [
        (ef.Padding(jnp.ones((3, 5), bool)), (2,), "`Padding.valid` is for a batch of (3,)"),
        (ef.Segments(jnp.ones((2, 5), int)), (), "`Segments.query_ids` is for a batch of (2,)"),
        (ef.Prefix(jnp.ones(2, int)), (2, 3), "`Prefix.length` is for a batch of (2,)"),
        (
            ef.Causal() & ef.Explicit(jnp.ones((2, 4, 5), bool)),
            (3,),
            "`Explicit.allowed` is for a batch of (2,)",
        ),
        (
            ef.PerHead(jnp.ones((2, 3, 2, 4, 5), bool)),
            (3, 3),
            "`PerHead.allowed` is for a batch of (2, 3)",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.usefixtures("unchecked")
def test_masks_of_another_batch_are_refused(mask, batch, message):
    with pytest.raises(ValueError) as error:
        check_batch(mask, batch)
    assert str(error.value) == f"{message}; this call has {batch}."
    part, x = drawn(ef.Attention.Config(heads=2), 4), normal(0, *batch, 5, 4)
    with pytest.raises(ValueError, match="is for a batch of"):
        part(x, mask=mask)


def test_masks_for_a_batch_its_rows_or_any_batch_are_accepted():
    for shape in [(2, 3, 5), (3, 5), (1, 5), (1, 1, 5), (2, 1, 5), (5,)]:
        check_batch(ef.Padding(jnp.ones(shape, bool)) & ef.Causal() & ef.Prefix(2), (2, 3))
    check_batch(None, (2,))


def test_a_window_counts_and_so_is_never_negative():
    with pytest.raises(
        ValueError, match="A window counts keys on either side; got left=-1, right=0."
    ):
        ef.Window(-1, 0)


def test_a_decoder_stays_causal_unless_a_mask_says_who_may_look_ahead():
    padding = ROWS["padding"][0]
    assert parts(ordered(None, ef.Causal())) == (ef.Causal(),)
    assert [type(p) for p in parts(ordered(padding, ef.Causal()))] == [ef.Causal, ef.Padding]
    for mask in (ef.Full(), ef.Prefix(2) & padding, ef.Causal()):
        assert ordered(mask, ef.Causal()) is mask


def test_a_cache_takes_paddings_out_and_refuses_what_describes_one_call():
    padding = ROWS["padding"][0]
    assert for_cache(None) is None
    assert for_cache(padding) is None
    assert parts(for_cache(ef.Causal() & padding & ef.Window(1, 0))) == (
        ef.Causal(),
        ef.Window(1, 0),
    )
    for name in ("segments", "explicit", "per head"):
        with pytest.raises(NotImplementedError, match=f"^{type(ROWS[name][0]).__name__} describes"):
            for_cache(ef.Causal() & ROWS[name][0])


class AllButNew(ef.Padding):
    """Padding behind which a query still sees itself."""

    def allows(self, queries, keys):
        itself = keys[..., None, None, :] == queries[..., None, :, None]
        shape = (2, 1, SEQ, KEYS)
        return super().allows(queries, keys) | jnp.broadcast_to(itself, shape)


def test_a_padding_that_says_something_of_its_own_is_refused_with_a_cache():
    own = AllButNew(jnp.asarray(VALID))
    assert not np.array_equal(own.allows(PLACES, PLACES), ROWS["padding"][0].allows(PLACES, PLACES))
    with pytest.raises(NotImplementedError, match="^AllButNew describes the keys of one call"):
        for_cache(ef.Causal() & own)

    class Named(ef.Padding):
        """Padding that only has another name."""

    assert for_cache(Named(jnp.asarray(VALID))) is None


@pytest.mark.parametrize("kind", ["attention", "latent attention"])
def test_a_padding_that_says_something_of_its_own_is_what_it_allows(kind):
    """Its keys are not blanked either, since a query may look at them."""
    if kind == "attention":
        part = drawn(ef.Attention.Config(heads=2), 8)
    else:
        part = drawn(ef.LatentAttention.Config(2, latent=4, head_dim=3, rotary_dim=2), 8)
    own, x = AllButNew(jnp.asarray(VALID)), normal(1, 2, SEQ, 8)

    @jax.jit
    def both(x):
        told = ef.Explicit(own.allows(PLACES, PLACES)[:, 0])
        return [part(x, mask=mask, positions=PLACES) for mask in (own, told)]

    np.testing.assert_allclose(*both(x), atol=1e-5)


def test_places_matter_to_all_but_arrays_and_what_allows_everything():
    assert not reads_places(None)
    for name, (mask, _) in CASES.items():
        by_places = name not in ("full", "padding", "explicit", "per head")
        assert reads_places(ef.Full() & mask) == (by_places and "segments" not in name)
    assert reads_places(AllButNew(jnp.asarray(VALID)))


@pytest.mark.parametrize("kind", [ef.Padding, ef.Explicit, ef.PerHead])
def test_numbers_that_would_be_added_to_scores_are_refused(kind):
    """Cast to booleans, they would allow just what they hide."""

    class Own(kind):
        """Without shape checks, which are made of the class itself."""

    allowed = jnp.array([[[True, False]]])
    added = jnp.where(allowed, 0.0, -jnp.inf)
    name = "valid" if kind is ef.Padding else "allowed"
    message = rf"`{kind.__name__}.{name}` must be boolean.*got {added.dtype}.*`ExplicitBias`"
    for numbers in (added, np.asarray(added), added.astype(jnp.bfloat16)):
        with pytest.raises(ValueError, match=message.replace("float32", "b?float(32|16)")):
            Own(numbers)
    mask = Own(allowed)
    assert (
        jax.tree.leaves(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), mask))[0].dtype
        == jnp.float32
    )
    Own(allowed.astype(jnp.int32))  # as tokenizers give it


def test_valid_keys_are_those_that_every_padding_calls_valid():
    assert valid_keys(ef.Causal()) is None
    both = ef.Padding(jnp.asarray(VALID)) & ef.Causal() & ef.Padding(jnp.asarray(VALID[0]))
    np.testing.assert_array_equal(valid_keys(both), VALID & VALID[0])
