import re
import sys

import numpy as np
import pytest
import tokenizers

from eqxformer.data.characters import Characters
from eqxformer.data.subwords import ByteLevelBPE, Subwords, Unigram, WordBPE
from eqxformer.data.tokenizer import encoded, tokenizer_of
from tests.data.made import sentences

TEXTS = [text for pair in sentences(40) for text in pair]
STRANGE = ["", " a", "a  b\n\tc", "日本 ünï", "</s> <pad>", "▁", "läuft\r\n"]


@pytest.fixture(scope="module")
def trained():
    kinds = (ByteLevelBPE(vocab=290), Unigram(vocab=280), WordBPE(vocab=90))
    return {type(kind).__name__: kind.train(TEXTS) for kind in kinds}


@pytest.mark.parametrize("kind", ["ByteLevelBPE", "Unigram"])
@pytest.mark.parametrize("text", [*STRANGE, TEXTS[0]])
def test_any_text_comes_back_from_bytes_exactly(trained, kind, text):
    tokenizer = trained[kind]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_and_the_spaces_between_them_come_back_exactly(trained):
    tokenizer = trained["WordBPE"]
    for text in [*TEXTS, "a  dog", "god", "tac runs ."]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_frequent_words_are_single_tokens_and_what_is_unknown_is_said_to_be(trained):
    tokenizer = trained["WordBPE"]
    assert tokenizer.tokenizer.encode("the dog").tokens == ["▁the", "▁dog"]
    assert tokenizer.unknown in tokenizer.encode("日")
    assert tokenizer.unknown not in tokenizer.encode("gods")


@pytest.mark.parametrize("kind", ["ByteLevelBPE", "Unigram", "WordBPE"])
def test_special_tokens_are_never_found_in_a_text(trained, kind):
    tokenizer = trained[kind]
    special = [tokenizer.padding, tokenizer.start, tokenizer.end, tokenizer.unknown]
    assert special == [0, 1, 2, 3]
    found = tokenizer.encode("<pad><s> a </s>")
    assert not np.isin(found, special[:3]).any()
    again = Subwords.from_json(tokenizer.to_json()).encode("<pad><s> a </s>")
    np.testing.assert_array_equal(found, again)


def test_special_tokens_are_left_out_of_a_text(trained):
    for tokenizer in trained.values():
        ids = tokenizer.encode("a big dog")
        given = [tokenizer.start, *ids.tolist(), tokenizer.end, tokenizer.padding]
        assert tokenizer.decode(given) == "a big dog"


def test_ids_outside_the_vocabulary_are_refused(trained):
    for tokenizer in trained.values():
        for wrong in (-1, tokenizer.vocab):
            with pytest.raises(ValueError, match=f"must be from 0 to {tokenizer.vocab - 1}"):
                tokenizer.decode([5, wrong])


@pytest.mark.parametrize("kind", [ByteLevelBPE(vocab=290), WordBPE(vocab=90)])
def test_the_same_texts_give_the_same_vocabulary(trained, kind):
    assert kind.train(TEXTS) == kind.train(iter(TEXTS)) == trained[type(kind).__name__]


def test_many_texts_are_encoded_as_each_of_them(trained):
    for tokenizer in [*trained.values(), Characters.of("".join(TEXTS))]:
        for ids, text in zip(encoded(tokenizer, TEXTS[:5]), TEXTS[:5], strict=True):
            np.testing.assert_array_equal(ids, tokenizer.encode(text))
            assert ids.dtype == np.int32


def test_a_file_is_one_of_the_package_tokenizers(trained, tmp_path):
    for tokenizer in trained.values():
        tokenizer.save(tmp_path / "tokenizer.json")
        other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        assert other.encode(TEXTS[3]).ids == tokenizer.encode(TEXTS[3]).tolist()
        assert Subwords.read(tmp_path / "tokenizer.json").vocab == tokenizer.vocab


def test_truncation_and_padding_of_a_file_do_not_shorten_a_text(trained):
    other = tokenizers.Tokenizer.from_str(trained["ByteLevelBPE"].json)
    other.enable_truncation(3)
    other.enable_padding(length=4)
    read = Subwords.from_json(other.to_str())
    assert read.decode(read.encode(TEXTS[0])) == TEXTS[0]
    assert len(read.encode("")) == 0


def test_a_vocabulary_that_cannot_hold_every_character_is_refused():
    with pytest.raises(ValueError, match=r"`vocab` must be at least 260, .* got 100"):
        ByteLevelBPE(vocab=100).train(TEXTS)
    with pytest.raises(ValueError, match=r"`vocab` must be at least \d+, .* got 9"):
        WordBPE(vocab=9).train(TEXTS)
    for vocab in (1, 200, 259, 260):
        with pytest.raises(ValueError, match=rf"`vocab` must be at least 261, .* got {vocab}"):
            Unigram(vocab=vocab).train(TEXTS)
    with pytest.raises(ValueError, match="`vocab` must be positive"):
        WordBPE(vocab=0)


@pytest.mark.parametrize(
    "texts", [TEXTS, ["a man walks", "ein Mann geht é"] * 9, ["日本語の"], ["a"]]
)
@pytest.mark.parametrize("kind", [ByteLevelBPE, Unigram, WordBPE])
def test_the_least_vocabulary_that_is_named_is_enough(kind, texts):
    with pytest.raises(ValueError, match="`vocab` must be at least") as caught:
        kind(vocab=1).train(texts)
    least = int(re.findall(r"at least (\d+)", str(caught.value))[0])
    assert kind(vocab=least).train(texts).vocab <= least
    with pytest.raises(ValueError, match=f"at least {least}, .* got {least - 1}"):
        kind(vocab=least - 1).train(texts)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_is_refused(texts):
    for kind in (ByteLevelBPE(vocab=300), Unigram(vocab=300), WordBPE(vocab=300)):
        with pytest.raises(ValueError, match="no text to learn"):
            kind.train(texts)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 3}'])
def test_what_is_no_tokenizer_is_refused(text):
    with pytest.raises(ValueError, match="no tokenizer of the package tokenizers"):
        Subwords.from_json(text)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.json` cannot be read"):
        Subwords.read(tmp_path / "none.json")


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install 'eqxformer\[hub\]'"):
        WordBPE(vocab=90).train(TEXTS)


def test_a_tokenizer_is_read_back_from_what_it_wrote(trained):
    import json

    for tokenizer in [*trained.values(), Characters.of("abc")]:
        found = tokenizer_of(json.loads(tokenizer.to_json()))
        assert type(found) is type(tokenizer)
        assert found.vocab == tokenizer.vocab
        np.testing.assert_array_equal(found.encode("a"), tokenizer.encode("a"))
    with pytest.raises(
        ValueError, match="A tokenizer must have `encode` and `decode`; WordBPE has not"
    ):
        tokenizer_of(WordBPE(vocab=9).to_dict())


def test_characters_have_no_special_ids():
    tokenizer = Characters.of("abc")
    special = (tokenizer.padding, tokenizer.start, tokenizer.end, tokenizer.unknown)
    assert special == (None,) * 4
