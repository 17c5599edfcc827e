"""Processors of what was seen: as the loops do, and other numbers compile nothing anew."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.generation import twins

INF = np.inf
SLOTS, NEW = 9, 4

# For each kind: settings of one structure, and the loop that does what the first of them does.
PENALTIES = {
    "repetition": ((1.3, 0.7), ef.RepetitionPenalty, twins.repetition),
    "presence": ((0.5, -1.5), ef.PresencePenalty, twins.presence),
    "frequency": ((0.5, -1.5), ef.FrequencyPenalty, twins.frequency),
    "longer": (
        ((1, 1.3, (2, 4)), (0, 1.1, (0, 1))),
        lambda s: ef.ExponentialLengthPenalty(s[0], s[1], stop=s[2]),
        twins.longer,
    ),
    "bias": (
        (
            {3: 2.0, (1,): -INF, (1, 2): -4.0, (0, 1, 2): 1.0},
            {2: -1.0, 0: 3.0, (2, 0): 0.5, (1, 1, 5): 1.0},
        ),
        ef.LogitBias,
        twins.bias,
    ),
    "bad words": (
        (((3,), (1, 2), (0, 1, 2), (2, 2)), ((1, 0, 2), (4,), (2, 3), (1, 1))),
        ef.BadWords,
        twins.bad_words,
    ),
}
RESTRICTIONS = {
    "no repeat": ((2,), ef.NoRepeatNGram, twins.no_repeat),
    "suppress": (((0, 4), (1, 2)), ef.Suppress, lambda r, t, p, ids: twins.without(r, ids)),
    "begin": (
        ((1, 3), (0, 2)),
        ef.SuppressAtBegin,
        lambda r, t, p, ids: twins.without(r, ids) if len(t) == p else r,
    ),
    "length": (
        (5, 3),
        lambda n: ef.MinLength(n, stop=(2, 4)),
        lambda r, t, p, n: twins.without(r, (2, 4)) if len(t) < n else r,
    ),
    "new": (
        (2, 0),
        lambda n: ef.MinNewTokens(n, stop=(2, 4)),
        lambda r, t, p, n: twins.without(r, (2, 4)) if len(t) - p < n else r,
    ),
    "force": (
        ({0: 2, -1: (0, 4), 2: 1}, {0: 3, 1: (0, 1), -2: 4}),
        ef.Force,
        lambda r, t, p, ids: (
            twins.demanded(
                r, {p: (2,), p + 2: (1,), p + NEW - 1: (0, 4)}.get(len(t), range(len(r)))
            )
            if len(t) - p in (0, 2, NEW - 1)
            else r
        ),
    ),
}
KINDS = PENALTIES | RESTRICTIONS


def texts(vocab, seed):
    """Rows of few different tokens: prompts of 1 to 4 tokens, and 0 to 3 more."""
    random = np.random.default_rng(seed)
    prompts = [1 + row % 4 for row in range(16)]
    sizes = [prompt + row // 4 for row, prompt in enumerate(prompts)]
    return [random.integers(0, min(3, vocab), size).tolist() for size in sizes], prompts


def seen_of(rows, prompts):
    """What the engine knows of these rows; past its end, a row holds what must not matter."""
    table = np.random.default_rng(0).integers(-1, 3, (len(rows), SLOTS))
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    lengths, prompts = [len(row) for row in rows], np.array(prompts)
    given = (table, np.array(lengths), prompts, prompts + NEW)
    return ef.Seen(*(jnp.asarray(each, jnp.int32) for each in given))


def logits_of(rows, vocab, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, vocab)).astype(np.float32) * 3


TRACED = []


@eqx.filter_jit
def run(processor, logits, seen=None):
    """The processor, compiled once for all tests of its kind."""
    TRACED.append(type(processor))
    return processor(logits, seen)


@pytest.mark.parametrize("name", KINDS)
def test_a_processor_does_what_the_loop_does_for_rows_of_all_lengths(name):
    settings, make, twin = KINDS[name]
    processor = make(settings[0])
    for seed in range(4):
        rows, prompts = texts(7, seed)
        logits = logits_of(len(rows), 7, seed)
        found = run(processor, jnp.asarray(logits), seen_of(rows, prompts))
        expected = [
            twin(row, text, prompt, settings[0])
            for row, text, prompt in zip(logits, rows, prompts, strict=True)
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9, 10])
def test_no_n_gram_of_any_size_comes_twice(size):
    processor = ef.NoRepeatNGram(size)
    for seed in range(3):
        rows, prompts = texts(7, seed)
        logits = logits_of(len(rows), 7, seed)
        found = run(processor, jnp.asarray(logits), seen_of(rows, prompts))
        expected = [twins.no_repeat(row, t, 0, size) for row, t in zip(logits, rows, strict=True)]
        np.testing.assert_array_equal(found, expected)


EVERY = {
    **{
        name: [make(setting) for setting in settings] for name, (settings, make, _) in KINDS.items()
    },
    "temperature": [ef.Temperature(0.5), ef.Temperature(2.0)],
    "top_k": [ef.TopK(2), ef.TopK(4)],
    "top_p": [ef.TopP(0.5), ef.TopP(0.9)],
    "min_p": [ef.MinP(0.1), ef.MinP(0.3)],
    "typical": [ef.Typical(0.5), ef.Typical(0.9)],
    "epsilon": [ef.Epsilon(0.01), ef.Epsilon(0.2)],
    "eta": [ef.Eta(0.01), ef.Eta(0.2)],
    "top_h": [ef.TopH(0.3), ef.TopH(0.8)],
    "normalize": [ef.Normalize()],
    "chain": [ef.TopK(4) | ef.PresencePenalty(1.0), ef.TopK(5) | ef.PresencePenalty(2.0)],
}


@pytest.mark.parametrize("name", EVERY)
def test_other_numbers_and_ids_compile_nothing_anew(name):
    logits, seen = jnp.asarray(logits_of(16, 7)), seen_of(*texts(7, 0))
    first, *others = EVERY[name]
    out = np.asarray(run(first, logits, seen))
    traced = len(TRACED)
    assert all((np.asarray(run(each, logits, seen)) != out).any() for each in others)
    assert len(TRACED) == traced > 0


@pytest.mark.parametrize("name", EVERY)
def test_under_vmap_a_processor_is_what_it_is_for_all_rows_at_once(name):
    rows, prompts = texts(7, 0)
    logits, seen = jnp.asarray(logits_of(16, 7)), seen_of(rows, prompts)
    groups = jax.tree.map(lambda x: np.asarray(x).reshape(4, 4, *x.shape[1:]), (logits, seen))
    found = eqx.filter_jit(lambda each, *groups: jax.vmap(each)(*groups))(EVERY[name][0], *groups)
    wanted = run(EVERY[name][0], logits, seen)
    np.testing.assert_allclose(np.asarray(found).reshape(16, 7), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_comes_back_and_is_computed_in_single(name):
    rows, prompts = texts(7, 0)
    half, seen = np.asarray(logits_of(16, 7), jnp.bfloat16), seen_of(rows, prompts)
    found = run(EVERY[name][0], jnp.asarray(half), seen)
    assert found.dtype == jnp.bfloat16
    single = np.asarray(run(EVERY[name][0], jnp.asarray(half, jnp.float32), seen))
    np.testing.assert_array_equal(
        np.asarray(found, np.float32), single.astype(jnp.bfloat16).astype(np.float32)
    )


@pytest.mark.parametrize("name", EVERY)
def test_a_vocabulary_of_one_token_is_no_special_case(name):
    mild = {
        "bias": ef.LogitBias({0: 1.0, (0, 0): 1.0}),
        "bad words": ef.BadWords([(0, 0, 0)]),
        "suppress": ef.Suppress(()),
        "begin": ef.SuppressAtBegin((0,)),
        "length": ef.MinLength(2, stop=(0,)),
        "new": ef.MinNewTokens(1, stop=(0,)),
        "force": ef.Force({0: 0}),
        "longer": ef.ExponentialLengthPenalty(0, 1.5, stop=(0,)),
        "no repeat": ef.NoRepeatNGram(4),
    }.get(name, EVERY[name][0])
    numbers = ([[0, 0, 0, 0]], [3], [2], [4])
    seen = ef.Seen(*(jnp.asarray(np.array(each, np.int32)) for each in numbers))
    found = run(mild, jnp.asarray(np.array([[1.5]], np.float32)), seen)
    assert found.shape == (1, 1)
    forbids = name in ("bad words",)
    assert np.isfinite(found).all() != forbids


# What was seen


def lists(seen):
    """The tokens of every row."""
    pairs = zip(np.asarray(seen.tokens), np.asarray(seen.length), strict=True)
    return [row[:length].tolist() for row, length in pairs]


def test_seen_holds_rows_from_the_left_whichever_side_their_padding_is_on():
    ids = jnp.array([[1, 2, 3], [4, -1, -1], [-1, 5, 6], [-1, 7, -1]])
    seen = ef.Seen.start(ids, ids >= 0, new=2)
    assert lists(seen) == [
        [1, 2, 3],
        [4],
        [5, 6],
        [7],
    ]
    assert seen.limit.tolist() == [5, 3, 4, 3]
    more = jax.jit(ef.Seen.add)(jax.jit(ef.Seen.add)(seen, jnp.arange(8, 12)), jnp.arange(12, 16))
    assert lists(more) == [
        [1, 2, 3, 8, 12],
        [4, 9, 13],
        [5, 6, 10, 14],
        [7, 11, 15],
    ]
    assert more.new.tolist() == [2, 2, 2, 2]
    assert more.prompt.tolist() == seen.length.tolist()


def test_a_token_past_the_end_overwrites_nothing():
    full = ef.Seen.start(jnp.array([[1, 2]]), None, new=0)
    assert full.add(jnp.array([3])).tokens.tolist() == [[1, 2]]


@pytest.mark.parametrize("processor", [ef.LogitBias({(1, 1, 2): -3.0}), ef.BadWords([(1, 1, 2)])])
def test_a_row_too_short_for_a_phrase_is_not_within_it(processor):
    seen = ef.Seen(
        jnp.array([[1, 1], [1, 1]]), jnp.array([1, 2]), jnp.ones(2, int), jnp.ones(2, int)
    )
    found = np.asarray(run(processor, jnp.zeros((2, 3)), seen))
    np.testing.assert_array_equal(found[0], [0, 0, 0])
    assert found[1, 2] < 0


@pytest.mark.parametrize(
    "processor",
    [ef.RepetitionPenalty(2.0), ef.FrequencyPenalty(2.0), ef.NoRepeatNGram(1)],
    ids=lambda processor: type(processor).__name__,
)
def test_a_place_without_a_token_stands_for_no_other(processor):
    """A row that once had nothing to choose holds -1, which as an index would be the last token."""
    seen = ef.Seen.start(jnp.array([[0]]), None, new=2).add(jnp.array([-1]))
    found = np.asarray(run(processor, jnp.ones((1, 4)), seen))
    np.testing.assert_array_equal(found[0, 1:], [1, 1, 1])


def test_steps_of_force_count_from_the_end_that_each_row_has():
    prompt = jnp.array([1, 3])
    seen = ef.Seen(jnp.zeros((2, 9), int), jnp.array([5, 5]), prompt, jnp.array([6, 9]))
    found = run(ef.Force({-1: 2}), jnp.ones((2, 3)), seen)
    np.testing.assert_array_equal(found, [[-INF, -INF, 0.0], [1.0, 1.0, 1.0]])


def test_where_the_first_step_is_the_last_the_demand_from_the_end_counts():
    seen = ef.Seen.start(jnp.array([[1]]), None, new=1)
    found = run(ef.Force({0: 1, -1: 2}), jnp.ones((1, 3)), seen)
    np.testing.assert_array_equal(found, [[-INF, -INF, 0]])


# Chains and functions


def test_a_chain_goes_from_left_to_right_and_a_chain_of_chains_is_flat():
    first, then, last = ef.LogitBias({0: 1.0}), ef.Temperature(0.5), ef.LogitBias({1: 3.0})
    chain = (first | then) | (last | first)
    assert chain.parts == (first, then, last, first)
    np.testing.assert_allclose(chain(jnp.zeros((1, 2))), [[3.0, 3.0]])
    np.testing.assert_array_equal(ef.Chain()(jnp.ones((1, 2))), [[1.0, 1.0]])
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = first | 0.5


def test_a_function_of_ones_own_gets_logits_and_what_was_seen():
    own = ef.Process(lambda logits, seen: logits + seen.length[:, None].astype(logits.dtype))
    seen = ef.Seen.start(jnp.array([[1, 2]]), None, new=2)
    found = run(ef.TopK(1) | own, jnp.array([[0.0, 1.0]]), seen)
    np.testing.assert_array_equal(found, [[-INF, 3.0]])


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda logits, seen: logits[:, :1], r"ArrayImpl with shape \(2, 1\)"),
        (lambda logits, seen: logits.astype(jnp.bfloat16), "dtype bfloat16"),
        (lambda logits, seen: None, "NoneType with shape None"),
    ],
)
def test_a_function_that_gives_something_else_than_logits_is_refused(function, got):
    with pytest.raises(ValueError, match=rf"float32\[2, 3\]; got .*{got}"):
        ef.Process(function)(jnp.zeros((2, 3)))


# Mistakes

NAMING = {
    "LogitBias": (ef.LogitBias({7: 1.0}), ef.LogitBias({(7, 1): 1.0})),
    "BadWords": (ef.BadWords([(7,)]), ef.BadWords([(7, 1), (2,)])),
    "Suppress": (ef.Suppress((1, 7)),),
    "SuppressAtBegin": (ef.SuppressAtBegin((7,)),),
    "MinLength": (ef.MinLength(1, stop=(7,)),),
    "ExponentialLengthPenalty": (ef.ExponentialLengthPenalty(0, 2.0, stop=(7,)),),
    "MinNewTokens": (ef.MinNewTokens(1, stop=(7,)),),
    "Force": (ef.Force({5: 7}),),
}


@pytest.mark.parametrize("name", NAMING)
def test_an_id_outside_the_vocabulary_is_an_error_and_nan_where_it_cannot_be_seen(name):
    seen = ef.Seen.start(jnp.array([[0, 1]]), None, new=2)
    for processor in NAMING[name]:
        with pytest.raises(ValueError, match=f"ids of `{name}` must be below 7; got 7"):
            processor(jnp.zeros((1, 7)), seen)
        assert np.isnan(run(processor, jnp.zeros((1, 7)), seen)).all()
        assert not np.isnan(run(processor, jnp.zeros((1, 8)), seen)).any()


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"suppress"}))
def test_what_looks_at_the_tokens_so_far_says_that_it_needs_them(name):
    settings, make, _ = KINDS[name]
    with pytest.raises(ValueError, match="looks at the tokens so far and needs `seen`; got None"):
        make(settings[0])(jnp.zeros((1, 7)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ef.RepetitionPenalty(0.0), "`penalty` must be above 0 and finite; got 0.0"),
        (lambda: ef.PresencePenalty(INF), "`penalty` must be finite; got inf"),
        (lambda: ef.FrequencyPenalty(np.nan), "`penalty` must be finite; got nan"),
        (lambda: ef.LogitBias({1: INF}), "must be finite or -inf; got inf for 1.*use `Force`"),
        (lambda: ef.LogitBias({(): 1.0}), "Every phrase of `LogitBias` must have at least one id"),
        (lambda: ef.NoRepeatNGram(0), "`size` must be at least 1; got 0"),
        (lambda: ef.BadWords([(1,), ()]), "Every phrase of `BadWords` must have at least one id"),
        (lambda: ef.Suppress((1, -2)), "ids of `Suppress` must not be negative; got -2"),
        (lambda: ef.SuppressAtBegin((1,), step=-1), "`step` must be at least 0; got -1"),
        (lambda: ef.MinLength(-1, stop=(1,)), "`length` must be at least 0; got -1"),
        (lambda: ef.MinLength(1, stop=()), "`MinLength` needs the ids that would end a row"),
        (lambda: ef.MinNewTokens(-1, stop=(1,)), "`count` must be at least 0; got -1"),
        (lambda: ef.MinNewTokens(1, stop=()), "`MinNewTokens` needs the ids"),
        (lambda: ef.ExponentialLengthPenalty(-1, 2.0, stop=(1,)), "`begin` must be at least 0"),
        (lambda: ef.ExponentialLengthPenalty(1, 0.0, stop=(1,)), "`factor` must be above 0"),
        (lambda: ef.Force({1: ()}), "needs a token for each step; got none for 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused_with_what_would(make, message):
    with pytest.raises(ValueError, match=message):
        make()
