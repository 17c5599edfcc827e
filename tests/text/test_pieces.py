"""Pieces of text, joined, are what `decode` gives, whatever the ids and however they come."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

import eqxformer as ef
from eqxformer.text._decoding import special_ids
from tests.text.made import LATE, LETTERS, MAKERS, size_of, tokenizer_of

KINDS = [*MAKERS, *LATE]


def ids_of(tokenizer, most=24):
    """Any ids, also outside of the vocabulary, and those of texts."""
    texts = st.text([*LETTERS, " ", "🦜", "ÿ"], max_size=most).map(
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    )
    return st.one_of(st.lists(st.integers(0, size_of(tokenizer) + 3), max_size=most), texts)


def in_chunks(ids, cuts):
    """The ids in pieces of these sizes, some of them empty."""
    ids, chunks = list(ids), []
    for size in cuts:
        chunks.append(ids[:size])
        ids = ids[size:]
    return [*chunks, ids]


CHUNKS = st.lists(st.integers(0, 3), max_size=24)


def joined(pieces, chunks):
    return "".join([*(pieces.feed(chunk) for chunk in chunks), pieces.finish()])


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(st.data())
def test_pieces_joined_are_the_decoded_text_to_the_letter(kind, data):
    tokenizer = tokenizer_of(kind)
    ids = data.draw(ids_of(tokenizer))
    text = joined(ef.TextPieces(tokenizer), in_chunks(ids, data.draw(CHUNKS)))
    assert text == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=20)
@given(st.data())
def test_with_strings_to_stop_at_pieces_are_the_text_before_the_first(kind, data):
    tokenizer = tokenizer_of(kind)
    ids = data.draw(ids_of(tokenizer))
    text = tokenizer.decode(ids)
    inside = [text[a : a + size] for a in range(len(text)) for size in (1, 2, 4)] or ["e"]
    stop = data.draw(st.lists(st.sampled_from(["é", "th", " ", *inside]), max_size=3))
    pieces = ef.TextPieces(tokenizer, stop=stop)
    assert joined(pieces, in_chunks(ids, data.draw(CHUNKS))) == ef.text_before(text, stop)
    assert pieces.stopped == any(string in text for string in stop)
    assert pieces.finish() == ""


@pytest.mark.parametrize("kind", MAKERS)
@settings(deadline=None, max_examples=20)
@given(st.data())
def test_after_a_prompt_pieces_are_what_it_lacks_of_the_whole_text(kind, data):
    tokenizer = tokenizer_of(kind)
    prompt, ids = data.draw(ids_of(tokenizer)), data.draw(ids_of(tokenizer))
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + ids)
    text = joined(ef.TextPieces(tokenizer, prompt=prompt), in_chunks(ids, data.draw(CHUNKS)))
    assert whole.endswith(text)
    if whole.startswith(before) and not before.endswith("\ufffd"):
        assert before + text == whole


def test_a_prompt_keeps_the_space_that_decode_leaves_out_at_the_beginning():
    tokenizer = tokenizer_of("llama")
    the, end, line = (tokenizer.token_to_id(token) for token in ("▁the", "▁end", "<0x0A>"))
    assert joined(ef.TextPieces(tokenizer), [the, end]) == "the end"
    assert joined(ef.TextPieces(tokenizer, prompt=the), [end]) == " end"
    assert joined(ef.TextPieces(tokenizer, prompt=[the, line]), [end]) == " end"


def test_a_character_of_several_tokens_comes_when_it_is_complete_and_others_at_once():
    tokenizer = tokenizer_of("byte level")
    ids = [tokenizer.token_to_id(letter) for letter in ("a", "ð", "Ł", "ĺ", "Ģ", "b", "ä", "½")]
    pieces = ef.TextPieces(tokenizer)
    assert [pieces.feed(number) for number in ids] == ["a", "", "", "", "😀", "b", "", ""]
    assert pieces.finish() == "\ufffd"


def test_a_run_of_bytes_waits_for_its_end_since_what_follows_may_break_it():
    tokenizer = tokenizer_of("gemma")
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "é".encode()]
    pieces = ef.TextPieces(tokenizer)
    assert [pieces.feed(number) for number in (*ids, tokenizer.token_to_id("x"))] == ["", "", "éx"]
    assert joined(ef.TextPieces(tokenizer), [*ids, ids[0]]) == "\ufffd" * 3


@pytest.mark.parametrize("kind", ["byte level", "gemma", "metaspace", "word pieces", "letters"])
def test_a_token_is_given_at_once_and_read_once(kind):
    """`decode` of the tokenizer is never asked, so that the time is linear in the text."""
    tokenizer = tokenizer_of(kind)
    names = ("id_to_token", "get_added_tokens_decoder", "decoder")
    only = types.SimpleNamespace(**{name: getattr(tokenizer, name) for name in names})
    pieces, ids = ef.TextPieces(only), tokenizer.encode("the end", add_special_tokens=False).ids
    for count, number in enumerate(ids, start=1):
        before = tokenizer.decode(ids[: count - 1])
        assert before + pieces.feed(number) == tokenizer.decode(ids[:count])


def lettered(*tokens):
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def test_what_may_begin_a_string_to_stop_at_is_held_back_until_it_does_not():
    pieces = ef.TextPieces(lettered("a", "b", "c", "xaab"), stop=("aabc", "bb"))
    given = [pieces.feed(token) for token in (0, 0, 0, 1, 0, 3)]
    assert given == ["", "", "a", "", "aab", "ax"]
    assert not pieces.stopped
    assert (pieces.feed(2), pieces.stopped, pieces.feed(0), pieces.finish()) == ("", True, "", "")


def test_what_was_held_back_is_given_at_the_end():
    pieces = ef.TextPieces(lettered("a", "b"), stop="ab")
    assert pieces.feed([1, 0]) == "b"
    assert (pieces.finish(), pieces.finish(), pieces.stopped) == ("a", "", False)
    with pytest.raises(ValueError, match="The text is finished; begin another `TextPieces`"):
        pieces.feed(0)


def with_end(*tokens):
    tokenizer = lettered(*tokens)
    tokenizer.add_special_tokens(["<end>", "<no>"])
    return tokenizer, tokenizer.token_to_id("<end>"), tokenizer.token_to_id("<no>")


def test_a_special_token_that_is_a_string_to_stop_at_ends_the_text():
    tokenizer, end, no = with_end("a", "b")
    pieces = ef.TextPieces(tokenizer, stop="<end>")
    assert [pieces.feed(ids) for ids in (0, no, [1, end, 0])] == ["a", "", "b"]
    assert (pieces.stopped, pieces.finish()) == (True, "")


def test_a_special_token_within_a_string_counts_there_and_is_no_text_elsewhere():
    tokenizer, end, no = with_end("a", "b")
    pieces = ef.TextPieces(tokenizer, stop=("a<end>b", "bb"))
    assert [pieces.feed(ids) for ids in (0, end, 0, end, no, 1)] == ["", "", "a", "", "", ""]
    assert (pieces.stopped, pieces.finish()) == (True, "")
    pieces = ef.TextPieces(tokenizer, stop=("a<end>b", "bb"))
    assert joined(pieces, [0, end, 0, 0, end, end, 1, no, 1]) == "aaa"
    assert pieces.stopped


@pytest.mark.parametrize("kind", MAKERS)
def test_special_tokens_that_end_nothing_leave_the_text_as_it_is(kind):
    tokenizer = tokenizer_of(kind)
    special = max(special_ids(tokenizer))
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in ("the 🦜", "is it")]
    ids = [special, *ids[0], special, special, *ids[1]]
    pieces = ef.TextPieces(tokenizer, stop=f"{tokenizer.id_to_token(special)} never")
    assert joined(pieces, ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["gemma", "byte level", "word ends"])
def test_what_waits_for_its_end_is_given_before_a_special_token(kind):
    """Bytes of a character, and in the case of words the sign of their end."""
    tokenizer = tokenizer_of(kind)
    text = "the" if kind == "word ends" else "the 🦜"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = ef.TextPieces(tokenizer, stop="</s>")
    assert "".join(pieces.feed(number) for number in ids) != text or kind == "byte level"
    pieces = ef.TextPieces(tokenizer, stop="</s>")
    assert pieces.feed([*ids, tokenizer.token_to_id("</s>"), *ids]).strip() == text


@pytest.mark.parametrize("ids", [3, [3], np.array([3], np.uint16), np.int32(3), jnp.array([3])])
def test_ids_may_be_one_a_list_or_an_array(ids):
    assert ef.TextPieces(lettered("a", "b", "c", "d")).feed(ids) == "d"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda pieces: pieces.feed(-1), r"from 0 to 2\*\*32 - 1; got -1"),
        (lambda pieces: pieces.feed([1, 2**32]), r"got \[1, 4294967296\]"),
        (lambda pieces: pieces.feed(0.5), "got 0.5"),
        (lambda pieces: pieces.feed([[1], [2]]), r"the ids of one row; got shape \(2, 1\)"),
        (lambda pieces: ef.TextPieces(lettered("a"), stop=("a", "")), "of `stop` must .* got ''"),
    ],
)
def test_what_is_no_id_and_no_string_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(ef.TextPieces(lettered("a", "b")))


# The text before a string


def slow(text, strings):
    """Ends from the left; of strings that end at one place, the longest."""
    for end in range(1, len(text) + 1):
        begins = [end - len(string) for string in strings if text[:end].endswith(string)]
        if begins:
            return text[: min(begins)]
    return text


@settings(deadline=None, max_examples=150)
@given(
    st.text("ab你佡", max_size=12), st.lists(st.text("ab你佡", min_size=1, max_size=4), max_size=4)
)
@example("xabcd", ["abcd", "c"])
@example("xabc", ["bc", "abc", "c"])
def test_text_before_strings_ends_at_the_one_that_is_complete_first(text, strings):
    assert ef.text_before(text, strings) == slow(text, strings)


def test_a_single_string_is_no_list_of_letters():
    assert ef.text_before("a b ab c", "ab") == "a b "
    with pytest.raises(ValueError, match="of `text_before` must be a text of at least one letter"):
        ef.text_before("a", "")


def test_a_prompt_that_ends_in_a_character_of_several_bytes_leaves_nothing_behind():
    """As a byte-fallback vocabulary spells a parrot, and the model writes another, or a word."""
    parrot = [f"<0x{byte:02X}>" for byte in "🦜".encode()]
    words = {token: i for i, token in enumerate(["<unk>", *parrot, "hey", "you"])}
    tokenizer = Tokenizer(models.BPE(words, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    config = ef.families.gpt(vocab=7, dim=4, layers=1, heads=1, context=8)
    generator = ef.TextGenerator(config.build(key=jax.random.key(0)), tokenizer)
    for new, text in (([6], "you"), ([1, 2, 3, 4], "🦜")):
        pieces = generator._pieces([5, 1, 2, 3, 4], ())
        assert pieces.feed(new) + pieces.finish() == text
