"""BPE-dropout: texts cut at random, with the same ids for the same seed."""

import collections
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqxformer.data.characters import Characters
from eqxformer.data.cuts import BPEDropout, Merges
from eqxformer.data.pairs import Pairs, TokenPairs
from eqxformer.data.parallel import ParallelText
from eqxformer.data.subwords import ByteLevelBPE, Subwords, Unigram, WordBPE
from tests.data.made import sentences

TEXT = ParallelText(*(tuple(side) for side in zip(*sentences(40, longest=9), strict=True)))
TEXTS = [*TEXT.source, *TEXT.target]
KINDS = {"words": WordBPE(vocab=90).train(TEXTS), "bytes": ByteLevelBPE(vocab=300).train(TEXTS)}
ODD = ["", " a", "a  b\n\tc", "日本 ünï", "</s> <pad>", "▁", "läuft\r\n", "dogdogs god"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.one_of(st.sampled_from([*ODD, *TEXTS]), st.text(max_size=30)))
def test_without_dropout_a_text_is_cut_as_the_tokenizer_cuts_it(kind, text):
    (found,) = next(BPEDropout(rate=0.0, ways=1).cut([text], KINDS[kind]))
    assert found.tolist() == KINDS[kind].encode(text).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.1, 0.7])
def test_every_way_of_cutting_is_the_same_text(kind, rate):
    tokenizer, ways = KINDS[kind], BPEDropout(rate=rate, ways=4)
    several = list(ways.cut(TEXTS, tokenizer, seed=3))
    assert len(several) == 4
    for found in several:
        assert [tokenizer.decode(ids) for ids in found] == TEXTS
    assert len({tuple(map(tuple, found)) for found in several}) == 4
    assert sum(map(len, several[0])) > sum(len(tokenizer.encode(text)) for text in TEXTS)


def test_a_merge_is_left_out_as_often_as_the_rate_says():
    tokenizer = WordBPE(vocab=7).train(["a"] * 9)  # "▁" and "a", and one merge of both
    assert tokenizer.encode("a").tolist() == [tokenizer.vocab - 1]
    count, rate = 4000, 0.3
    ways = BPEDropout(rate=rate, ways=count)
    split = sum(len(found[0]) == 2 for found in ways.cut(["a"], tokenizer))
    assert abs(split / count - rate) < 4 * math.sqrt(2 * rate * (1 - rate) / count)


def test_the_first_merge_that_is_left_is_made_again_and_again():
    """For "abc" with the merges ab, bc, abc, the chances of each cut are worked out by hand."""
    ids = {symbol: i for i, symbol in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    ranks = {("a", "b"): 0, ("b", "c"): 1, ("ab", "c"): 2}
    merges, rate, count = Merges(None, ids, ranks, None), 0.4, 20_000
    drawn = random.Random(5)
    found = collections.Counter(tuple(merges.cut("abc", rate, drawn)) for _ in range(count))
    expected = {
        (5,): (1 - rate) ** 2,
        (3, 2): (1 - rate) * rate,
        (0, 4): rate * (1 - rate),
        (0, 1, 2): rate**2,
    }
    assert found.keys() == expected.keys()
    for cut, chance in expected.items():
        assert abs(found[cut] / count - chance) < 0.02


def test_the_same_seed_cuts_alike_and_a_word_does_not_depend_on_other_words():
    ways, tokenizer = BPEDropout(rate=0.5, ways=3), KINDS["words"]
    one, two = ([list(way) for way in ways.cut(TEXTS, tokenizer, seed=1)] for _ in range(2))
    other = [list(way) for way in ways.cut(TEXTS, tokenizer, seed=2)]
    as_lists = [[[ids.tolist() for ids in way] for way in each] for each in (one, two, other)]
    assert as_lists[0] == as_lists[1] != as_lists[2]
    ids, ends = ways._ways(Merges.of(tokenizer), {"▁dogs": 0}, 1)  # as if it were alone
    pool = {tuple(cut.tolist()) for cut in np.split(ids, ends[:-1])}
    for (found,) in ways.cut(["the dogs"], tokenizer, seed=1):
        assert any(tuple(found[-len(cut) :].tolist()) == cut for cut in pool)


def test_pairs_are_there_in_every_way_and_framed_like_others():
    ways, tokenizer = BPEDropout(rate=0.5, ways=3), KINDS["words"]
    pairs, plain = ways.pairs(TEXT, tokenizer, seed=7), TokenPairs.of(TEXT, tokenizer)
    assert pairs.lines.tolist() == plain.lines.tolist() * 3
    assert pairs.padding == plain.padding
    for side in ("source", "target"):
        rows, texts = getattr(pairs, side), getattr(TEXT, side)
        found = np.split(rows.ids, rows.ends[:-1])
        assert [tokenizer.decode(ids) for ids in found] == [*texts] * 3
        assert {ids[-1] for ids in found} == {tokenizer.end}
    starts = pairs.target.ends - pairs.target.lengths
    assert set(pairs.target.ids[starts].tolist()) == {tokenizer.start}
    assert pairs.digest() == ways.pairs(TEXT, tokenizer, seed=7).digest()
    assert pairs.digest() != ways.pairs(TEXT, tokenizer, seed=8).digest()
    batch = Pairs(tokens=256, buckets=2, longest=64).build(pairs)(0)
    assert batch.source.ndim == 2


def test_a_rate_of_nothing_gives_the_pairs_of_the_tokenizer():
    pairs = BPEDropout(rate=0.0, ways=1).pairs(TEXT, KINDS["bytes"])
    assert pairs.digest() == TokenPairs.of(TEXT, KINDS["bytes"]).digest()


@pytest.mark.parametrize(
    ("tokenizer", "kind"),
    [(Unigram(vocab=280).train(TEXTS), "Unigram"), (Characters.of(TEXTS[0]), "Characters")],
)
def test_a_tokenizer_without_merges_is_refused(tokenizer, kind):
    with pytest.raises(ValueError, match=f"a tokenizer that makes some, .* got {kind}"):
        next(BPEDropout().cut(TEXTS, tokenizer))


def test_a_tokenizer_that_cuts_by_more_than_merges_is_refused():
    plain = KINDS["words"].json
    odd = plain.replace('"end_of_word_suffix":null', '"end_of_word_suffix":"</w>"')
    assert odd != plain
    with pytest.raises(ValueError, match="with `end_of_word_suffix` cannot be cut"):
        Merges.of(Subwords(odd))


@pytest.mark.parametrize(
    ("values", "message"),
    [({"rate": 1.0}, "below 1; got 1.0"), ({"rate": -0.1}, "got -0.1"), ({"ways": 0}, "got 0")],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        BPEDropout(**values)
