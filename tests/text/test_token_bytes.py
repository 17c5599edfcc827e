"""The bytes of tokens, joined, are the text that their tokenizer makes of them."""

import functools
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eqxformer as ef
from eqxformer.text.token_bytes import spelled
from tests.text.made import BYTES, LATE, LETTERS, MAKERS, tokenizer_of

# A token that is the same text at the beginning, and next to any other.
ANCHORS = {"byte level": "x", "only bytes": "<0x78>", "strip": "x"}


@functools.cache
def bytes_of(kind):
    return ef.token_bytes(tokenizer_of(kind))


def whole_texts(kind):
    """Lists of ids in which bytes of one character are never apart."""
    tokenizer = tokenizer_of(kind)
    lone = {tokenizer.token_to_id(token) for token in BYTES}
    ids = [number for number, part in enumerate(bytes_of(kind)) if part and number not in lone]
    texts = st.text([*LETTERS, " ", "🦜", "ÿ", "\0"], max_size=8)
    encoded = texts.map(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
    single = [st.sampled_from(ids).map(lambda number: [number])] if ids else []
    return st.lists(st.one_of(encoded, *single), max_size=8).map(lambda lists: [*chain(*lists)])


@pytest.mark.parametrize("kind", MAKERS)
@settings(deadline=None, max_examples=20)
@given(st.data())
def test_bytes_joined_are_what_decode_gives_inside_of_a_text(kind, data):
    tokenizer, parts = tokenizer_of(kind), bytes_of(kind)
    anchor = tokenizer.token_to_id(ANCHORS.get(kind, "x"))
    ids = data.draw(whole_texts(kind))
    joined = b"".join(parts[number] or b"" for number in [*ids, anchor])
    expected = tokenizer.decode([anchor, *ids, anchor])
    assert tokenizer.decode([anchor]) + joined.decode("utf-8", "replace") == expected


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_ids_of_a_byte_level_vocabulary_are_their_bytes_in_utf_8_from_the_first_on(data):
    tokenizer, parts = tokenizer_of("byte level"), bytes_of("byte level")
    ids = data.draw(st.lists(st.integers(0, len(parts) - 1), max_size=20))
    joined = b"".join(parts[number] or b"" for number in ids)
    assert joined.decode("utf-8", "replace") == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("kind", "token", "part"),
    [
        ("byte level", "Ġ", b" "),
        ("byte level", "<|end|>", None),
        ("byte level", "<s>", None),
        ("byte level", "<think>", b"<think>"),
        ("byte level", "with space", b"with space"),
        ("byte level", "Ċ", b"\n"),
        ("byte level", "ð", b"\xf0"),
        ("llama", "▁the", b" the"),
        ("llama", "<0x0A>", b"\n"),
        ("llama", "<s>", None),
        ("metaspace", "▁你", " 你".encode()),
        ("word pieces", "##e", b"e"),
        ("word pieces", "t", b" t"),
        ("word pieces", "?", b"?"),
        ("word pieces as they are", "?", b" ?"),
        ("word ends", "e</w>", b"e "),
        ("letters", "你", "你".encode()),
        ("letters with spaces", "e", b" e"),
        ("only bytes", "<0xFF>", b"\xff"),
        ("only bytes", "<pad>", None),
    ],
)
def test_a_token_is_the_text_it_stands_for(kind, token, part):
    number = tokenizer_of(kind).token_to_id(token)
    assert number is not None
    assert bytes_of(kind)[number] == part


@pytest.mark.parametrize("kind", MAKERS)
def test_the_bytes_of_a_first_token_are_what_decode_makes_of_it_alone(kind):
    tokenizer = tokenizer_of(kind)
    parts = spelled(tokenizer, "beginning")
    assert parts.spaces == {"llama": 1, "two spaces": 2}.get(kind, 0)
    for number, part in enumerate(parts.first):
        assert (part is None) == (parts.inside[number] is None)
        text = (part or b"").decode("utf-8", "replace")
        for _ in range(parts.spaces):
            text = text.removeprefix(" ")
        if kind == "word ends":  # of a last token, the sign for the end is no space
            text = text.removesuffix(" ")
        assert text == tokenizer.decode([number]), tokenizer.id_to_token(number)


def test_holes_in_a_vocabulary_are_none():
    from tokenizers import Tokenizer, decoders, models

    tokenizer = Tokenizer(models.WordLevel({"a": 1, "b": 4}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    assert ef.token_bytes(tokenizer) == (None, b"a", None, None, b"b")


@pytest.mark.parametrize("kind", LATE)
def test_a_decoder_under_which_bytes_depend_on_other_tokens_is_refused(kind):
    with pytest.raises(NotImplementedError, match=r"ByteLevel, ByteFallback, Metaspace.*; got \w"):
        ef.token_bytes(tokenizer_of(kind))
