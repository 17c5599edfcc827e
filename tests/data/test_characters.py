import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqxformer.config import Config
from eqxformer.data.characters import Characters


@given(st.text(min_size=1))
def test_decode_is_the_inverse_of_encode(text):
    tokenizer = Characters.of(text)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text


def test_ids_follow_the_order_of_code_points():
    tokenizer = Characters.of("zebra\n😀é")
    assert tokenizer.alphabet == "\naberzé😀"
    assert tokenizer.encode("a😀\n").tolist() == [1, 7, 0]


def test_unknown_characters_are_named():
    with pytest.raises(ValueError, match=r"outside the alphabet: 'x', 'é'\. The alphabet is 'abc'"):
        Characters.of("abc").encode("axébx")


def test_the_empty_text_is_no_ids():
    assert Characters.of("ab").encode("").shape == (0,)
    assert Characters.of("ab").decode([]) == ""


@pytest.mark.parametrize("wrong", [-1, 2])
def test_an_id_outside_the_vocabulary_is_refused(wrong):
    with pytest.raises(ValueError, match=f"from 0 to 1; got {wrong}"):
        Characters.of("ab").decode([0, wrong])


@pytest.mark.parametrize("alphabet", ["", "ba", "aab"])
def test_an_alphabet_is_sorted_and_without_repeats(alphabet):
    with pytest.raises(ValueError, match="`alphabet`"):
        Characters(alphabet)


def test_the_alphabet_survives_json():
    tokenizer = Characters.of('"\\\u2028 \n😀')
    assert Config.from_json(tokenizer.to_json()) == tokenizer


@given(st.text(min_size=1))
def test_the_tokenizer_for_other_libraries_reads_and_writes_the_same(text):
    characters = Characters.of(text)
    theirs = characters.tokenizer
    found = theirs.encode(text)
    assert found.ids == characters.encode(text).tolist()
    assert theirs.decode(found.ids) == text


def test_the_tokenizer_for_other_libraries_refuses_other_characters_too():
    with pytest.raises(Exception, match="Missing"):
        Characters.of("ab").tokenizer.encode("abc")
