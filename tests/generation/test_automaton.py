"""Automata: what is allowed, where it leads, and that no row runs into a dead end."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.generation.following import take_rows, where_rows
from tests.generation.small import small as small_model
from tests.helpers.models import VOCAB, tokens

STOP = 0
INF = np.inf

# 1 2* 3, with a way by 4 that leads nowhere; in the middle a text may also end.
TRANSITIONS = {
    "start": {1: "middle", 4: "nowhere"},
    "middle": {2: "middle", 3: "end", 4: "nowhere"},
    "nowhere": {4: "nowhere"},
}


def small(**options):
    return ef.Automaton.of(TRANSITIONS, ["middle", "end"], stop=STOP, **options)


@eqx.filter_jit
def masked(automaton, logits, seen):
    return automaton(logits, seen)


@eqx.filter_jit
def followed(automaton, tokens):
    return automaton.after(tokens)


def after(automaton, *tokens):
    """The automaton after a token in each row."""
    return followed(automaton, jnp.asarray(np.array(tokens, np.int32)))


def allowed(automaton, vocab=6, seen=None):
    """The ids that are allowed in each row; what is allowed is as it was."""
    logits = np.random.default_rng(0).standard_normal((1, vocab)).astype(np.float32)
    logits = np.repeat(logits, automaton.state.value.shape[0], axis=0)
    found = np.asarray(masked(automaton, jnp.asarray(logits), seen))
    kept = found > -INF
    np.testing.assert_array_equal(found[kept], logits[kept])
    return [np.flatnonzero(row).tolist() for row in kept]


def random_automaton(seed, states=6, ids=9, stop=(0, 7), **options):
    """A table drawn at random, with the tokens of a class in no order."""
    random = np.random.default_rng(seed)
    classes = random.integers(-1, 4, ids)
    table = np.where(random.random((states, 4)) < 0.5, random.integers(0, states, (states, 4)), -1)
    final = random.random(states) < 0.4
    final[states - 1], table[0, 0], table[1:-1, 3] = True, 1, np.arange(2, states)
    return table, classes, final, {"stop": stop, **options}


def by_search(table, classes, final, stop):
    """For each state, the tokens that may come, by looking for a final state from each."""
    columns = {each for token, each in enumerate(classes) if each >= 0 and token not in stop}
    good = set(np.flatnonzero(final).tolist())
    for _ in range(len(table)):
        good |= {s for s in range(len(table)) for c in columns if table[s, c] in good}
    found = []
    for state in range(len(table)):
        tokens = {t for t, c in enumerate(classes) if c >= 0 and table[state, c] in good}
        found.append(sorted((tokens - set(stop)) | (set(stop) if final[state] else set())))
    return found, good


@pytest.mark.parametrize("seed", range(12))
def test_what_is_allowed_is_what_can_still_come_to_a_final_state(seed):
    table, classes, final, options = random_automaton(seed)
    may, good = by_search(table, classes, final, options["stop"])
    if 0 not in good:
        with pytest.raises(ValueError, match="No tokens lead from the `start`"):
            ef.Automaton(table, classes, final, **options)
        return
    automaton = ef.Automaton(table, classes, final, **options)
    random = np.random.default_rng(seed)
    for _ in range(5):
        here, state = automaton.begin(1), 0
        for _ in range(8):
            (ids,) = allowed(here, vocab=11)
            assert ids == may[state]
            token = int(random.choice(ids))
            here = after(here, token)
            if token in options["stop"]:
                assert allowed(here, vocab=11) == [sorted(options["stop"])]
                break
            state = table[state, classes[token]]


def test_an_end_is_allowed_where_a_text_is_complete_and_forced_where_nothing_follows():
    automaton = small().begin(1)
    assert allowed(automaton) == [[1]]
    middle = after(automaton, 1)
    assert allowed(middle) == [[STOP, 2, 3]]
    assert allowed(after(middle, 3)) == [[STOP]]
    ended = after(middle, STOP)
    assert allowed(ended) == [[STOP]]
    assert allowed(after(ended, 5)) == [[STOP]]  # what fills up a finished row


@pytest.mark.parametrize("token", [-1, 0, 4, 5, 99])
def test_after_a_token_that_was_forbidden_nothing_is_allowed(token):
    lost = after(small().begin(1), token)
    assert allowed(lost) == [[]]
    assert allowed(after(lost, 1)) == [[]]


def test_a_token_that_ends_the_text_is_never_part_of_it():
    automaton = ef.Automaton.of({"start": {3: "a", 4: "b"}}, ["a", "b"], stop=3)
    assert allowed(automaton.begin(1)) == [[4]]


def test_each_row_has_a_state_of_its_own_which_moves_with_it():
    automaton = after(small().begin(3), 1, 4, 1)
    assert allowed(automaton) == [[STOP, 2, 3], [], [STOP, 2, 3]]
    later = take_rows(after(automaton, 3, 3, 2), jnp.array([2, 0, 0, 1]))
    assert allowed(later) == [[STOP, 2, 3], [STOP], [STOP], []]
    mixed = where_rows(jnp.array([True, False, True, False]), later, small().begin(4))
    assert allowed(mixed) == [[STOP, 2, 3], [1], [STOP], [1]]


def test_near_the_limit_only_what_can_still_be_completed_is_allowed():
    pairs = {"start": {1: "a", 2: "b"}, "a": {1: "end"}, "b": {1: "a", 2: "b"}}
    automaton = ef.Automaton.of(pairs, ["end"], stop=STOP)

    def options(left, automaton):
        limit = jnp.array([3 + left])
        seen = ef.Seen(jnp.zeros((1, 9), int), jnp.array([3]), jnp.array([3]), limit)
        return allowed(automaton, seen=seen)[0]

    begun = automaton.begin(1)
    assert [options(left, begun) for left in (1, 2, 3)] == [[], [1], [1, 2]]
    behind = after(begun, 2)
    assert [options(left, behind) for left in (2, 3)] == [[1], [1, 2]]
    assert [options(left, after(behind, 1)) for left in (1, 2)] == [[1], [1]]
    free = ef.Automaton.of(pairs, ["end"], stop=STOP, within_limit=False).begin(1)
    assert options(1, free) == [1, 2]


def test_other_automata_of_about_the_size_compile_nothing_anew():
    traced = []

    @eqx.filter_jit
    def run(automaton, logits, tokens):
        traced.append(1)
        return automaton.after(tokens)(logits)

    outs = []
    for seed, states in ((0, 4), (1, 6), (2, 5)):
        table, classes, final, options = random_automaton(seed, states=states)
        classes[1], table[0, 0], final[1] = 0, 1, True
        automaton = ef.Automaton(table, classes, final, **options).begin(2)
        outs.append(np.asarray(run(automaton, jnp.zeros((2, 12)), jnp.array([1, 2]))))
    assert len(traced) == 1
    assert (outs[0] != outs[1]).any()


def test_under_vmap_an_automaton_is_what_it_is_for_all_rows_at_once():
    automaton = after(small().begin(4), 1, 1, 4, 0)
    logits = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    groups = jax.tree.map(lambda x: x.reshape(2, 2), automaton.state)
    one = eqx.tree_at(lambda a: a.state, automaton, groups)
    axes = jax.tree.map(lambda _: None, automaton)
    axes = eqx.tree_at(lambda a: a.state, axes, 0, is_leaf=lambda x: x is None)
    grouped = eqx.filter_jit(jax.vmap(lambda a, x: a(x), in_axes=(axes, 0)))
    found = np.asarray(grouped(one, jnp.asarray(logits.reshape(2, 2, 6))))
    np.testing.assert_array_equal(found.reshape(4, 6), automaton(jnp.asarray(logits)))


# In generation


def matches(row):
    """Whether tokens are 1 2* 3?, and then a stop."""
    while row and row[-1] == STOP:
        row = row[:-1]
    inner = row[1:-1] if row[-1] == 3 else row[1:]
    return row[0] == 1 and all(token == 2 for token in inner)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_generate_makes_nothing_but_texts_of_the_automaton(name):
    made = ef.generate(
        small_model(name),
        tokens(8, 4),
        max_new_tokens=6,
        sampler=small() | ef.Temperature(5.0) | ef.Sample(),
        stop=STOP,
        key=jax.random.key(0),
        **({} if name == "llama" else {"start": 2}),
    )
    rows = np.asarray(made).tolist()
    assert all(matches(row) for row in rows)
    assert len({tuple(row) for row in rows}) > 2


def test_the_likeliest_token_is_kept_where_it_is_allowed():
    """An automaton that allows every token but the last changes nothing until that comes."""
    every = {"start": dict.fromkeys(range(1, VOCAB), "start")}
    free = ef.Automaton.of(every, ["start"], stop=STOP)
    options = {"max_new_tokens": 6, "stop": STOP}
    plain = ef.generate(small_model("llama"), tokens(4, 3), sampler=ef.Greedy(), **options)
    same = ef.generate(small_model("llama"), tokens(4, 3), sampler=free | ef.Greedy(), **options)
    np.testing.assert_array_equal(plain, same)


def test_generation_that_goes_on_knows_where_each_row_is_in_its_text():
    options = {"sampler": small(within_limit=False) | ef.Sample(), "stop": STOP}
    options["key"] = jax.random.key(1)
    begun = ef.prefill(small_model("llama"), [[1, 2], [3], [4, 5, 6], [7]], slots=64)
    once = ef.decode(small_model("llama"), begun, max_new_tokens=6, **options)
    part = ef.decode(small_model("llama"), begun, max_new_tokens=2, **options)
    twice = ef.decode(small_model("llama"), part, max_new_tokens=4, **options)
    assert twice.tokens() == once.tokens()
    assert all(matches(row) for row in once.new_tokens())


@pytest.mark.parametrize("within_limit", [True, False])
def test_a_stream_gives_in_pieces_the_texts_that_generate_makes(within_limit):
    """Also near the limit, where only what can still be completed is allowed."""
    prompts = [[1, 2], [3], [4, 5, 6], [7]]
    options = {"max_new_tokens": 7, "stop": STOP, "key": jax.random.key(2)}
    longer = ef.LogitBias({2: 4.0})
    options["sampler"] = longer | small(within_limit=within_limit) | ef.Sample()
    pieces = list(ef.stream(small_model("llama"), prompts, every=2, **options))
    joined = [[token for piece in row for token in piece] for row in zip(*pieces, strict=True)]
    assert joined == ef.generate(small_model("llama"), prompts, **options)
    assert max(map(len, joined)) > 3
    assert all(matches(row) for row in joined if within_limit or row[-1] == STOP)


def test_the_beams_of_a_search_each_have_a_state_of_their_own():
    """All texts of the automaton within the limit are found, as there are as many beams."""
    few = ef.Automaton.of({"start": {1: 1, 2: 2}, 1: {3: 3, 4: 3}, 2: {5: 3}}, [1, 3], stop=STOP)
    options = {"beams": 4, "best": 4, "max_new_tokens": 3, "processor": few, "stop": STOP}
    found = ef.beam_search(small_model("llama"), [[1, 2], [3]], **options)
    texts = {(1, STOP), (1, 3, STOP), (1, 4, STOP), (2, 5, STOP)}
    assert [{tuple(text) for text in row} for row in found.tokens] == [texts, texts]


def test_a_text_for_which_there_is_no_room_is_an_error_that_names_the_row():
    long = ef.Automaton.of({"start": {12: 1}, 1: {1: 2}, 2: {1: 3}}, [3], stop=STOP)
    options = {"max_new_tokens": 2, "stop": STOP, "sampler": long | ef.Greedy()}
    with pytest.raises(ValueError, match="Row 0 has no token to choose"):
        ef.generate(small_model("llama"), tokens(4, 3), **options)


def test_a_mask_of_ones_own_does_what_an_automaton_does():
    """Alternation of even and odd ids, by a function of what was seen."""
    made = ef.generate(
        small_model("llama"),
        tokens(4, 3),
        max_new_tokens=6,
        sampler=ef.Process(_alternate) | ef.Sample(),
        key=jax.random.key(0),
    )
    before = np.concatenate([np.asarray(tokens(4, 3))[:, -1:], np.asarray(made)[:, :-1]], axis=1)
    assert ((np.asarray(made) + before) % 2 == 1).all()


def _alternate(logits, seen):
    ids = jnp.arange(logits.shape[-1])
    return jnp.where((ids[None] + seen.newest()[:, None]) % 2 == 1, logits, -jnp.inf)


# Mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stop": ()}, r"`stop` must have the ids that end a text, none negative; got \(\)"),
        ({"stop": (1, -1)}, r"none negative; got \(1, -1\)"),
        ({"start": 6}, "`start` must be one of the 6 states; got 6"),
        ({"table": np.full((6, 4), 6)}, "`table` must be -1 or below 6; got 6"),
        ({"classes": np.array([4])}, "`classes` must be -1 or below 4; got 4"),
        ({"final": np.zeros(6, bool)}, "No tokens lead from the `start`"),
    ],
)
def test_an_automaton_that_cannot_be_is_refused_with_what_is_wrong(change, message):
    table, classes, final, options = random_automaton(0)
    options = {"table": table, "classes": classes, "final": final, **options, **change}
    with pytest.raises(ValueError, match=message):
        ef.Automaton(**options)


def test_names_of_states_that_are_nowhere_are_refused():
    with pytest.raises(ValueError, match="`start` must be one of the 4 states"):
        small(start="elsewhere")
    with pytest.raises(ValueError, match="Tokens of `Automaton` must not be negative; got -2"):
        ef.Automaton.of({"start": {-2: "end"}}, ["end"], stop=STOP)


def test_without_a_state_per_row_and_with_too_few_logits_an_automaton_says_so():
    with pytest.raises(ValueError, match=r"call `begin\(rows\)` first"):
        small()(jnp.zeros((1, 6)))
    with pytest.raises(ValueError, match="`Automaton` has 5 tokens; there are logits of 4 only"):
        small().begin(1)(jnp.zeros((1, 4)))
