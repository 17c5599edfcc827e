"""A row is finished as soon as its new text contains a string, wherever tokens begin and end."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

import eqxformer as ef
from eqxformer.generation.following import joined, parted, take_rows
from tests.text.made import BYTES, MAKERS, tokenizer_of

VOCAB = (b"a", b"b", b"ab", b"ba", b"xaabx", None, b"", b"\xe4\xbd", b"\xa0", b"\xa1", b"aabab")
ROWS, STEPS = 4, 8
TRACED = []


@eqx.filter_jit
def stops(stop, ids):
    """Where each row is finished, after each of its tokens."""
    TRACED.append(1)
    rows = ids.shape[0]
    memories, rest = parted(stop.begin(rows))

    def step(carry, tokens):
        memories, seen = carry
        after = joined(memories, rest).after(tokens)
        seen = seen.add(tokens)
        return (parted(after)[0], seen), after.reached(seen)

    seen = ef.Seen.start(jnp.zeros((rows, 1), int), None, new=ids.shape[1])
    return jax.lax.scan(step, (memories, seen), ids.T)[1].T


def contains(row, strings, parts=VOCAB):
    """After each token, whether it has completed a string."""
    found, text = [], b""
    for number in row:
        part = (parts[number] or b"") if 0 <= number < len(parts) else b""
        text += part
        ends = range(len(text) - len(part) + 1, len(text) + 1)
        found.append(any(text[:end].endswith(s.encode()) for end in ends for s in strings))
    return found


TABLES = st.lists(
    st.lists(st.integers(-1, len(VOCAB) + 1), min_size=STEPS, max_size=STEPS),
    min_size=ROWS,
    max_size=ROWS,
)
STRINGS = st.lists(st.text("abx你佡", min_size=1, max_size=5), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(TABLES, STRINGS)
def test_a_row_is_finished_by_the_token_that_completes_a_string(table, strings):
    found = stops(ef.StopStrings(strings, VOCAB), jnp.array(table))
    np.testing.assert_array_equal(found, [contains(row, strings) for row in table])


@pytest.mark.parametrize(
    ("string", "row", "expected"),
    [
        ("aba", [0, 1, 0], [0, 0, 1]),  # over several tokens
        ("aab", [1, 4, 1], [0, 1, 0]),  # in the middle of one
        ("xaabxa", [4, 5, 6, 0], [0, 0, 0, 1]),  # over tokens that are no text
        ("aabb", [0, 10, 1], [0, 0, 0]),  # a beginning that was not one after all
        ("aabab", [0, 0, 3, 1], [0, 0, 0, 1]),  # from within another beginning
        ("你", [7, 9, 7, 8], [0, 0, 0, 1]),  # within a character
        ("bab", [2, 99, -1, 2], [0, 0, 0, 1]),  # over ids outside of the vocabulary
    ],
)
def test_a_string_is_found_wherever_tokens_begin_and_end(string, row, expected):
    found = stops(ef.StopStrings(string, VOCAB), jnp.array([row]))
    assert found[0].tolist() == [bool(each) for each in expected]


def test_other_strings_compile_nothing_anew():
    table = jnp.zeros((2, 3), int)
    stops(ef.StopStrings(("a" * 9, "ba"), VOCAB), table)
    before = len(TRACED)
    found = stops(ef.StopStrings("aaa", VOCAB), table)
    assert len(TRACED) == before
    np.testing.assert_array_equal(found, [[False, False, True]] * 2)
    stops(ef.StopStrings("a" * 90, VOCAB), table)
    assert len(TRACED) == before + 1


def test_special_tokens_in_a_string_compile_nothing_anew():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<|im_end|>", "<|eot|>"])
    table = jnp.array([[0, 2, 3, 1]])
    stops(ef.StopStrings("x", tokenizer), table)
    before = len(TRACED)
    for string, expected in (("<|im_end|>", [0, 1, 0, 0]), ("a<|eot|>", [0, 0, 1, 0])):
        found = stops(ef.StopStrings(string, tokenizer), table)
        assert found[0].tolist() == [bool(each) for each in expected]
    whole = stops(ef.StopStrings("a", tokenizer, place="beginning"), table)
    assert whole[0].tolist() == [True, False, False, False]
    assert len(TRACED) == before


def test_under_vmap_a_stop_is_what_it_is_for_all_rows_at_once():
    random = np.random.default_rng(0)
    table = jnp.asarray(random.integers(0, len(VOCAB), (6, STEPS)))
    stop = ef.StopStrings(("ab", "bxa"), VOCAB)
    grouped = jax.vmap(lambda ids: stops(stop, ids))(table.reshape(3, 2, STEPS))
    np.testing.assert_array_equal(grouped.reshape(6, STEPS), stops(stop, table))


def test_rows_that_are_taken_bring_along_what_they_have_read():
    stop = ef.StopStrings("aab", VOCAB).begin(3)
    stop = stop.after(jnp.array([0, 1, 0])).after(jnp.array([0, 1, 1]))
    taken = take_rows(stop, jnp.array([2, 0, 0])).after(jnp.array([1, 1, 2]))
    seen = ef.Seen.start(jnp.zeros((3, 1), int), None, new=1)
    assert taken.reached(seen).tolist() == [False, True, True]


def test_a_string_or_an_id_whichever_comes_first():
    stop = ef.StopStrings("ab", VOCAB) | ef.StopIds(5)
    found = stops(stop, jnp.array([[0, 1, 0], [0, 5, 1], [0, 0, 0]]))
    np.testing.assert_array_equal(
        found, [[False, True, False], [False, True, True], [False, False, False]]
    )


LETTERS = "the 你😀🦜"  # the last is four tokens or more


@pytest.mark.parametrize("kind", ["byte level", "gemma", "word pieces", "letters"])
@settings(deadline=None, max_examples=10)
@given(st.text(LETTERS + "isx", max_size=12), st.lists(st.text(LETTERS, min_size=1, max_size=3)))
def test_where_a_row_is_finished_the_pieces_of_its_text_stop_too(kind, text, more):
    tokenizer, strings = tokenizer_of(kind), ["th", *more]
    first, *ids = tokenizer.encode("x" + text, add_special_tokens=False).ids
    assume(tokenizer.decode([first]))  # behind no text at all, a first word has no space
    row = ([*ids, first] * 13)[:13]
    reached = stops(ef.StopStrings(strings, tokenizer), jnp.array([row]))[0].tolist()
    size = reached.index(True) + 1 if any(reached) else len(row)
    pieces = ef.TextPieces(tokenizer, stop=strings, prompt=first)
    for number in row[:size]:
        assert not pieces.stopped
        pieces.feed(number)
    pieces.finish()
    assert pieces.stopped == any(reached)


@pytest.mark.parametrize(
    ("string", "row", "expected"),
    [
        ("<e>", ["a", "<e>", "a"], [0, 1, 0]),
        ("a<e>b", ["a", "<e>", "b"], [0, 0, 1]),
        ("a<e>b", ["a", "<no>", "<e>", "b"], [0, 0, 0, 1]),  # one in no string is no text
        ("ab", ["a", "<e>", "b"], [0, 0, 1]),
    ],
)
def test_a_special_token_that_is_or_is_in_a_string_counts(string, row, expected):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<e>", "<no>"])
    ids = [tokenizer.token_to_id(token) for token in row]
    found = stops(ef.StopStrings(string, tokenizer), jnp.array([ids]))
    assert found[0].tolist() == [bool(each) for each in expected]


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "only bytes"])
@settings(deadline=None, max_examples=5)
@given(st.text(LETTERS + "isx", max_size=12), st.lists(st.text(LETTERS, min_size=1, max_size=3)))
def test_in_a_whole_text_the_spaces_that_decode_leaves_out_do_not_count(kind, text, more):
    tokenizer, strings = tokenizer_of(kind), [" th", " 你", *more]
    ids = tokenizer.encode("the" + text, add_special_tokens=False).ids
    row = (ids * 13)[:13]
    stop = ef.StopStrings(strings, tokenizer, place="beginning")
    reached = bool(stops(stop, jnp.array([row])).any())
    pieces = ef.TextPieces(tokenizer, stop=strings)
    pieces.feed(row)
    pieces.finish()
    assert reached == pieces.stopped


def test_as_many_spaces_as_decode_leaves_out_are_passed_over_at_the_beginning_alone():
    words = {"▁": 0, "▁a": 1, "a": 2, "▁▁a": 3, "": 4}
    rows = jnp.array([[1, 1, 4], [0, 1, 4], [4, 2, 1], [3, 4, 4], [2, 1, 4]])
    for spaces, ends in ((0, [1, 2, 3, 1, 2]), (1, [2, 2, 3, 1, 2]), (2, [2, 0, 3, 0, 2])):
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
        steps = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", spaces, 0)]
        tokenizer.decoder = decoders.Sequence(steps)
        stop = ef.StopStrings(" a", tokenizer, place="beginning")
        found = np.asarray(stops(stop, rows))
        first = np.where(found.any(1), found.argmax(1) + 1, 0)
        np.testing.assert_array_equal(first, ends)


def beginning(tokenizer, strings, ids):
    """Whether a whole text of these ids stops at a string, and whether its pieces do."""
    stop = ef.StopStrings(strings, tokenizer, place="beginning")
    row = [*ids, *[-1] * (13 - len(ids))]
    pieces = ef.TextPieces(tokenizer, stop=strings)
    pieces.feed(ids)
    pieces.finish()
    return bool(stops(stop, jnp.array([row])).any()), pieces.stopped


@pytest.mark.parametrize(
    ("decoder", "strings", "words", "expected"),
    [
        (decoders.Metaspace(), " c", ["▁▁c", "▁a"], False),  # all spaces of a first token go
        (decoders.Metaspace(), " c", ["▁", "▁▁c"], True),
        (decoders.Metaspace(), " c", ["", "▁▁c"], True),
        (decoders.Metaspace(), "b", ["▁▁c", "▁b"], True),
        (decoders.Metaspace(), ("x<e>", " b"), ["<e>", "▁b", "▁a"], False),
        (decoders.Metaspace(), ("x<e>", " b"), ["<no>", "<e>", "<e>", "▁b", "▁b"], True),
        (decoders.Metaspace(), "<e> b", ["<e>", "▁b"], False),
        (decoders.Metaspace(), "<e>b", ["<e>", "▁b"], True),
        (decoders.WordPiece(), "##d", ["##d", "a"], True),  # the sign that it goes on stays
        (decoders.WordPiece(), "##d", ["a", "##d"], False),
        (None, ("x<e>", " a"), ["<e>", "a", "##d"], False),
        (None, "<e> a", ["##d", "<e>", "a"], True),
    ],
)
def test_the_first_token_of_a_whole_text_is_what_decode_makes_of_it(
    decoder, strings, words, expected
):
    vocabulary = ["a", "▁a", "▁b", "▁▁c", "▁", "", "##d"]
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="a"))
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<e>", "<no>"])
    found = beginning(tokenizer, strings, [tokenizer.token_to_id(word) for word in words])
    assert found == (expected, expected)


WITHOUT_BYTES = [  # whose tokens are all text that is one by itself
    "two spaces",
    "gemma",
    "metaspace",
    "bytes then metaspace",
    "never",
    "unigram",
    "word pieces",
    "word pieces as they are",
    "letters with spaces",
]


@pytest.mark.parametrize("kind", WITHOUT_BYTES)
@settings(deadline=None, max_examples=15)
@given(st.data())
def test_whatever_tokens_a_whole_text_begins_with_it_stops_where_its_pieces_do(kind, data):
    tokenizer = tokenizer_of(kind)
    known = sorted(tokenizer.get_vocab(with_added_tokens=True).items())
    begins = [number for token, number in known if token[0] in "<▁#t " and token not in BYTES]
    ids = data.draw(st.lists(st.sampled_from(begins), min_size=1, max_size=4))
    some = [" ", "  ", " t", "t", "##", "#", " <s>", "<s> ", "<unk>t", "x<s>", "x<unk>"]
    strings = data.draw(st.lists(st.sampled_from(some), min_size=1, max_size=3))
    reached, stopped = beginning(tokenizer, strings, ids)
    assert reached == stopped


def test_generation_ends_with_the_token_that_completes_a_string():
    config = ef.families.llama(vocab=len(VOCAB), dim=8, layers=1, heads=1, hidden=8)
    model = config.build(key=jax.random.key(0))
    strings = ("bx", "aba", "bb")

    def generated(stop):
        stop = ef.StopStrings(stop, VOCAB)
        key = jax.random.key(3)
        return ef.generate(
            model, [[1, 2], [3]], max_new_tokens=12, sampler=ef.Sample(), stop=stop, key=key
        )

    whole, rows = generated("never there"), generated(strings)
    assert min(len(row) for row in rows) < 12
    for row, all_of_it in zip(rows, whole, strict=True):
        found = contains(all_of_it, strings)
        assert row == (all_of_it[: found.index(True) + 1] if True in found else all_of_it)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ef.StopStrings((), VOCAB), "needs a string to stop at; got none"),
        (
            lambda: ef.StopStrings("a", VOCAB, place="end"),
            "`place` .*must be .*inside.*beginning.*; got .*'end'",
        ),
        (
            lambda: ef.StopStrings("a", VOCAB, place="beginning"),
            "`place='beginning'` needs the tokenizer, .* got the bytes of each id",
        ),
        (lambda: ef.StopStrings(("a", ""), VOCAB), "Every string of `StopStrings` must .* got ''"),
        (
            lambda: ef.StopStrings("a", VOCAB).after(jnp.array([0])),
            r"stop.begin\(rows\), then stop.after\(tokens\)",
        ),
    ],
)
def test_no_string_and_no_beginning_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):  # the latter of checked annotations
        make()
