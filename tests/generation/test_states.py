"""States: prompts of any form read into one, gone on from, repeated, added to, stopped."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.generation.decode import _typed
from eqxformer.generation.prompts import as_rows
from tests.generation.small import shallow, small
from tests.helpers.models import VOCAB, close, filled, model, tokens

NEW = 5
SLOTS = 64  # as `generate` makes for so few tokens, whose programs then serve here too
LISTS = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11]]
SAMPLE = {"sampler": ef.Sample(2.0)}


def key(seed=3):
    return jax.random.key(seed)


def padded(side):
    ids = np.full((3, 9), 12)
    valid = np.zeros((3, 9), bool)
    for row, text in enumerate(LISTS):
        at = slice(0, len(text)) if side == "right" else slice(9 - len(text), 9)
        ids[row, at], valid[row, at] = text, True
    return ids, valid


# Prompts


@pytest.mark.parametrize("name", ["gpt", "gemma", "experts and sinks"])
def test_lists_and_arrays_padded_on_either_side_give_what_each_prompt_gives_alone(name):
    made = ef.generate(model(name), LISTS, max_new_tokens=NEW)
    for side in ("left", "right"):
        ids, valid = padded(side)
        array = ef.generate(model(name), jnp.asarray(ids), valid=valid, max_new_tokens=NEW)
        assert array.tolist() == made
    for text, expected in zip(LISTS, made, strict=True):
        alone = ef.generate(model(name), [text] * 3, max_new_tokens=NEW)  # no row is any other
        assert alone == [expected] * 3


def same(state, whole):
    """Asserts that logits and caches are equal to rounding."""
    close(state.logits, whole.logits)
    for a, b in zip(jax.tree.leaves(state.cache), jax.tree.leaves(whole.cache), strict=True):
        close(a, b)


def test_reading_in_chunks_gives_the_same_state():
    """Also with windows of three tokens, shorter and longer than a chunk."""
    whole = ef.prefill(model("gemma"), LISTS, slots=SLOTS)
    for chunk in (1, 4):
        same(ef.prefill(model("gemma"), LISTS, slots=SLOTS, chunk=chunk), whole)


def test_a_text_longer_than_one_pass_is_read_in_several(monkeypatch):
    text = [tokens(37).tolist(), tokens(20, seed=1).tolist(), [3]]
    whole = ef.prefill(model("llama"), text, slots=SLOTS)
    monkeypatch.setattr("eqxformer.generation.prompts.LONGEST", 16)
    same(ef.prefill(model("llama"), text, slots=SLOTS), whole)


# Going on


@pytest.mark.parametrize("options", [{}, SAMPLE], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", ["gemma", "t5"])
def test_stopping_after_a_few_tokens_and_going_on_equals_one_call(name, options):
    given = {"start": 1} if name == "t5" else {}
    options = {**options, "key": key()} if options else {}
    whole = ef.generate(model(name), LISTS, max_new_tokens=6, **given, **options)
    state = ef.prefill(model(name), LISTS, slots=SLOTS, **given)
    for new in (1, 3, 2):
        state = ef.decode(model(name), state, max_new_tokens=new, **options)
    assert state.new_tokens() == whole


def test_a_state_is_a_value_from_which_one_can_go_on_twice():
    built = small("llama")
    state = ef.decode(built, ef.prefill(built, LISTS, slots=SLOTS), max_new_tokens=2)
    before = jax.tree.map(np.asarray, state)
    first = ef.decode(built, state, max_new_tokens=4, key=key(), **SAMPLE)
    again = ef.decode(built, state, max_new_tokens=4, key=key(), **SAMPLE)
    assert first.tokens() == again.tokens()
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state))


def test_a_state_that_was_saved_goes_on_from_the_file(tmp_path):
    built = model("gemma")
    whole = ef.generate(built, LISTS, max_new_tokens=6, key=key(), **SAMPLE)
    state = ef.prefill(built, LISTS, slots=SLOTS)
    state = ef.decode(built, state, max_new_tokens=2, key=key(), **SAMPLE)
    eqx.tree_serialise_leaves(tmp_path / "state", state)
    empty = jax.tree.map(jnp.zeros_like, state)
    loaded = eqx.tree_deserialise_leaves(tmp_path / "state", empty)
    made = ef.decode(built, loaded, max_new_tokens=4, key=key(), **SAMPLE)
    assert made.new_tokens() == whole


def test_a_model_spread_over_devices_makes_the_same_text():
    built = small("llama")
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("model",))

    def spread(leaf):
        parts = jax.P(None, "model") if leaf.ndim == 2 and not leaf.shape[1] % 2 else jax.P()
        return jax.device_put(leaf, jax.NamedSharding(mesh, parts))

    over = jax.tree.map(spread, built)
    assert any(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(over))
    options = {"max_new_tokens": 6, "key": key(), **SAMPLE}
    assert ef.generate(over, LISTS, **options) == ef.generate(built, LISTS, **options)
    state = ef.decode(over, ef.prefill(over, LISTS, slots=SLOTS), **options)
    assert state.new_tokens() == ef.generate(built, LISTS, **options)


def test_a_row_that_a_stop_has_ended_stays_ended_when_the_others_go_on():
    built = small("llama")
    options = {"key": key(5), **SAMPLE}
    free = ef.generate(built, LISTS, max_new_tokens=6, **options)
    stop = free[0][1]
    assert stop not in (free[0][0], *free[1])
    state = ef.prefill(built, LISTS, slots=SLOTS)
    for new in (3, 3):
        state = ef.decode(built, state, max_new_tokens=new, stop=stop, **options)
    made = ef.generate(built, LISTS, max_new_tokens=6, stop=stop, **options)
    assert state.new_tokens() == made
    assert made[0] == free[0][:2]
    assert made[1] == free[1]


def test_a_prompt_is_read_once_for_many_answers():
    built = model("gemma")
    state = ef.prefill(built, LISTS, slots=SLOTS).repeat(2)
    made = ef.decode(built, state, max_new_tokens=NEW, key=key(), **SAMPLE).new_tokens()
    copies = [text for text in LISTS for _ in range(2)]
    assert made == ef.generate(built, copies, max_new_tokens=NEW, key=key(), **SAMPLE)
    assert all(made[row] != made[row + 1] for row in (0, 2, 4))


@pytest.mark.parametrize(
    ("name", "layout", "rows"),
    [("gemma", ef.Unrolled(), [2, 0]), ("llama", ef.Scanned(), [2, 0, 2])],
    ids=["fewer, unrolled", "one twice, scanned"],
)
def test_rows_are_taken_from_the_caches_of_any_layout(name, layout, rows):
    built = model(name, layout)
    state = ef.prefill(built, LISTS, slots=SLOTS).take(jnp.array(rows))
    made = ef.decode(built, state, max_new_tokens=NEW).new_tokens()
    assert made == ef.generate(built, [LISTS[row] for row in rows], max_new_tokens=NEW)


@pytest.mark.parametrize("name", ["gemma", "t5"])
def test_tokens_added_to_a_state_are_read_as_if_they_had_been_in_the_prompt(name):
    built, more = model(name), [[3, 1], [4], [1, 5, 9]]
    given = {"start": 1} if name == "t5" else {}
    state = ef.prefill(built, LISTS, slots=SLOTS, **given)
    state = ef.decode(built, state, max_new_tokens=2)
    said = state.tokens()
    state = ef.append(built, state, more)
    both = [a + b for a, b in zip(said, more, strict=True)]
    assert state.tokens() == both
    if name == "t5":
        expected = ef.generate(built, LISTS, start=both, max_new_tokens=NEW)
    else:
        expected = ef.generate(built, both, max_new_tokens=NEW)
    assert ef.decode(built, state, max_new_tokens=NEW).new_tokens() == expected


def test_a_finished_row_goes_on_after_it_has_been_given_more():
    built = small("llama")
    free = ef.generate(built, LISTS, max_new_tokens=3)
    state = ef.prefill(built, LISTS, slots=SLOTS)
    state = ef.decode(built, state, max_new_tokens=3, stop=free[0][0])
    assert state.new_tokens()[0] == free[0][:1]
    assert not all(np.asarray(state.finished))
    said = state.tokens()
    state = ef.append(built, state, [[7]] * 3)
    expected = ef.generate(built, [[*text, 7] for text in said], max_new_tokens=2)
    assert ef.decode(built, state, max_new_tokens=2).new_tokens() == expected


# Keys


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_with_a_key_per_row_a_text_depends_on_its_own_key_alone(kind):
    built = small("llama")

    def made(rows):
        keys = jax.random.split(jax.random.key(3, impl=kind), 3)[np.array(rows)]
        texts = [LISTS[row] for row in rows]
        return ef.generate(built, texts, max_new_tokens=NEW, key=keys, **SAMPLE)

    every = made([0, 1, 2])
    assert made([2, 1, 0]) == every[::-1]
    assert made([2, 2, 2]) == every[2:] * 3


def long_enough(seen):
    return seen.length >= 9


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_a_first_row_that_has_ended_leaves_other_rows_their_numbers(kind):
    """Under `vmap`, JAX draws with such keys by that of the first row alone."""
    options = {"max_new_tokens": 12, "sampler": ef.Sample(50.0)}
    free = ef.generate(small("llama"), LISTS, key=jax.random.key(1, impl=kind), **options)
    stop = ef.StopWhen(long_enough)
    made = ef.generate(
        small("llama"), LISTS, key=jax.random.key(1, impl=kind), stop=stop, **options
    )
    assert made == [free[0][:2], free[1][:8], free[2][:6]]
    assert all(len(set(row)) > 2 for row in made[1:])


# Stops


def test_a_function_of_ones_own_ends_a_row():
    stop = ef.StopWhen(long_enough)
    made = ef.generate(small("llama"), LISTS, max_new_tokens=6, stop=stop)
    assert [len(row) for row in made] == [2, 6, 6]
    free = ef.generate(small("llama"), LISTS, max_new_tokens=6)
    assert made == [free[0][:2], free[1], free[2]]


def test_stops_are_joined_and_the_first_ids_of_them_fill_the_rows():
    prompts = np.array([[0, 4], [3, 9], [0, 4]])
    free = np.asarray(ef.generate(small("llama"), prompts, max_new_tokens=4))
    never, ending = next(i for i in range(VOCAB) if i not in free), int(free[1, 0])
    assert ending not in free[0]
    stop = ef.StopWhen(lambda seen: seen.new >= 2) | ef.StopIds((never, ending))
    made = ef.generate(small("llama"), prompts, max_new_tokens=4, stop=stop)
    first = [*free[0, :2], never, never]
    assert made.tolist() == [first, [ending, never, never, never], first]


class Remembering(ef.Stop):
    """Ends a row when the ids made in it add up to a number: it has to remember the sum."""

    most: int
    total: ef.Memory | None = None

    def begin(self, rows):
        return Remembering(self.most, ef.Memory(jnp.zeros(rows, jnp.int32)))

    def after(self, tokens):
        return Remembering(self.most, ef.Memory(self.total.value + tokens))

    def reached(self, seen):
        return self.total.value >= self.most


def test_what_a_stop_remembers_is_there_again_when_generation_goes_on():
    built = small("llama")
    options = {"stop": Remembering(25), "key": key(1), **SAMPLE}
    made = ef.generate(built, LISTS, max_new_tokens=8, **options)
    free = ef.generate(built, LISTS, max_new_tokens=8, key=key(1), **SAMPLE)
    for row, whole in zip(made, free, strict=True):
        reached = np.flatnonzero(np.cumsum(whole) >= 25)
        assert row == whole[: reached[0] + 1 if reached.size else 8]
    assert min(map(len, made)) < 8
    state = ef.prefill(built, LISTS, slots=SLOTS)
    for new in (1, 2, 5):
        state = ef.decode(built, state, max_new_tokens=new, **options)
    assert state.new_tokens() == made


def test_no_stop_at_all_is_none_or_no_ids():
    options = {"max_new_tokens": NEW}
    free = ef.generate(small("llama"), LISTS, **options)
    assert ef.generate(small("llama"), LISTS, stop=None, **options) == free


# Streaming


def test_a_stream_gives_the_tokens_of_generate_in_pieces():
    options = {"max_new_tokens": 7, "key": key(5), **SAMPLE}
    built = small("llama")
    whole = ef.generate(built, LISTS, **options)
    stop = whole[0][2]
    whole = ef.generate(built, LISTS, stop=stop, **options)
    pieces = list(ef.stream(built, LISTS, every=3, stop=stop, **options))
    for row, expected in enumerate(whole):
        assert [token for piece in pieces for token in piece[row]] == expected
    assert [len(piece[0]) for piece in pieces] == [1, 2, 0]


def test_a_stream_ends_when_every_row_is_finished():
    prompts = [[1, 2]] * 3
    free = ef.generate(small("llama"), prompts, max_new_tokens=1)
    pieces = list(ef.stream(small("llama"), prompts, max_new_tokens=9, stop=free[0][0]))
    assert pieces == [free]


# Mistakes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: ef.generate(m, [], max_new_tokens=1), "at least one prompt; got none"),
        (lambda m: ef.generate(m, [[1], []], max_new_tokens=1), "row 1 is empty"),
        (lambda m: ef.generate(m, [[1, VOCAB]], max_new_tokens=1), f"below {VOCAB}; got {VOCAB}"),
        (
            lambda m: ef.generate(m, [[1]], max_new_tokens=1, valid=jnp.ones((1, 1), bool)),
            "lists have their own",
        ),
        (
            lambda m: ef.generate(m, [[1] * 3], max_new_tokens=2, slots=4),
            "4 slots, 3 of them taken",
        ),
        (lambda m: ef.prefill(m, [[1] * 5], slots=4), "4 slots, and a prompt has 5 tokens"),
        (lambda m: ef.prefill(m, [[1]], slots=4, chunk=0), "`chunk` must be positive; got 0"),
        (lambda m: ef.prefill(m, [[1]], slots=4).repeat(0), "`times` must be positive; got 0"),
        (lambda m: ef.prefill(m, [[1]], slots=4).take(jnp.array([0, 1])), "below 1; got 1"),
        (
            lambda m: ef.prefill(m, [[1]], slots=4).take(jnp.array([-2])),
            "least -1 and .* got -2",
        ),
        (lambda m: ef.append(m, ef.prefill(m, [[1]], slots=4), [[1], [2]]), "1 rows; got 2"),
        (lambda m: ef.append(m, ef.prefill(m, [[1]], slots=4), [[1] * 4]), "to hold 5 tokens"),
        (lambda m: ef.stream(m, [[1]], max_new_tokens=1, every=0), "`every` must be positive"),
        (
            lambda m: ef.generate(
                m, [[1]], max_new_tokens=1, sampler=ef.Sample(), key=jax.random.split(key(), 2)
            ),
            r"one per row, 1; got \(2,\)",
        ),
        (
            lambda m: ef.generate(
                m, [[1]], max_new_tokens=1, slots=4, stop=ef.StopWhen(lambda seen: True)
            ),
            "must give a boolean per row",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call(small("llama"))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([1, 2], "list of lists of token ids; row 0 is 1"),
        ([[1], ["a"]], r"row 1 is \['a'\]"),
        ([[1.0]], r"row 0 is \[1.0\]"),
        (np.ones((1, 2)), r"at least one token id, .* got float64\[1, 2\]"),
        (np.ones(3, int), r"at least one token id, .* got int64\[3\]"),
    ],
)
def test_what_is_no_rows_of_ids_is_refused(prompts, message):
    with pytest.raises(ValueError, match=message):
        as_rows(prompts, None, VOCAB)


@pytest.mark.parametrize("wrong", [0, np.float32(1), "a"])
def test_what_is_no_key_is_refused_where_no_contract_does(wrong):
    with pytest.raises(ValueError, match=r"must be a key, such as jax.random.key\(0\); got .*"):
        _typed(wrong)
    assert (_typed(jax.random.key_data(key())) == key()).all()


@pytest.mark.parametrize("options", [{"max_new_tokens": 3.0}, {"max_new_tokens": 3, "every": 2.0}])
def test_counts_of_a_stream_are_whole_numbers_where_no_contract_says_so(options):
    with pytest.raises(TypeError, match="'float' object cannot be interpreted as an integer"):
        inspect.unwrap(ef.stream)(small("llama"), [[1]], **options)


def test_nan_logits_are_an_error_that_names_the_row_and_not_a_token():
    broken = jax.tree.map(lambda x: x, small("llama"))
    table = broken.embedding.tokens.weight
    broken = eqx.tree_at(lambda m: m.embedding.tokens.weight, broken, table.at[7].set(jnp.nan))
    with pytest.raises(ValueError, match="Row 1 has no token to choose"):
        ef.generate(broken, [[1, 2], [7, 2], [3]], max_new_tokens=2)


def test_positions_end_where_the_table_does_also_when_going_on():
    """With fewer slots than `generate` makes, which changes nothing either."""
    built = filled(shallow("gpt").edit("embedding.positions", length=8))
    state = ef.decode(built, ef.prefill(built, [[1, 2, 3]], slots=16), max_new_tokens=4)
    with pytest.raises(ValueError, match=r"8 positions, so that after 7 tokens .* at most 2 new"):
        ef.decode(built, state, max_new_tokens=3)
    state = ef.decode(built, state, max_new_tokens=2)
    assert state.new_tokens() == ef.generate(built, [[1, 2, 3]], max_new_tokens=6)
