import itertools
from collections import Counter

import numpy as np
import pytest

from eqxformer.data.characters import Characters
from eqxformer.data.pairs import Pairs, Rows, TokenPairs, best_widths
from eqxformer.data.parallel import ParallelText
from eqxformer.data.share import Share
from eqxformer.data.subwords import Subwords, WordBPE
from tests.data.made import sentences

PAIRS = sentences(203, longest=9)
TEXT = ParallelText(*(tuple(side) for side in zip(*PAIRS, strict=True)))
TOKENIZER = WordBPE(vocab=90).train([*TEXT.source, *TEXT.target])
TOKENS = TokenPairs.of(TEXT, TOKENIZER)
DATA = Pairs(tokens=192, buckets=3, longest=20)


def texts(batch):
    """The pairs of a batch as texts; the rows that fill it up are left out."""
    found = []
    for source, valid, target, counts in zip(
        batch.source, batch.source_valid, batch.target, batch.target_weights, strict=True
    ):
        if not valid.any():
            assert not counts.any()
            continue
        found.append((TOKENIZER.decode(source[valid]), TOKENIZER.decode(target[counts])))
    return found


def epoch(batches, number, steps):
    return [pair for step in range(steps) for pair in texts(batches(number * steps + step))]


def test_an_epoch_has_every_pair_exactly_once_in_a_new_order():
    batches, steps = DATA.build(TOKENS, seed=1), DATA.steps(TOKENS, 1)
    first, second = (epoch(batches, number, steps) for number in (0, 1))
    assert Counter(first) == Counter(second) == Counter(PAIRS)
    assert first != second


def test_batches_are_a_pure_function_of_seed_and_step():
    one, two = DATA.build(TOKENS, seed=1), DATA.build(TOKENS, seed=1)
    for step in (40, 3, 17):
        np.testing.assert_array_equal(one(step).target, two(step).target)
    np.testing.assert_array_equal(one(3).source, DATA.build(TOKENS, seed=1)(3).source)
    other = DATA.build(TOKENS, seed=2)
    assert any(texts(one(step)) != texts(other(step)) for step in range(5))


def test_the_shares_of_processes_are_the_batch_of_one():
    whole = DATA.build(TOKENS, seed=1)
    shares = [DATA.build(TOKENS, seed=1, share=Share(index=i, count=4)) for i in range(4)]
    assert {share.fingerprint for share in shares} == {whole.fingerprint}
    for step in range(DATA.steps(TOKENS, 2)):
        own = [share(step) for share in shares]
        for field in ("source", "source_valid", "target", "target_weights"):
            together = np.concatenate([getattr(batch, field) for batch in own])
            np.testing.assert_array_equal(together, getattr(whole(step), field))
    with pytest.raises(ValueError, match="multiple of the 3 processes"):
        DATA.build(TOKENS, seed=1, share=Share(index=0, count=3))


def test_the_fingerprint_notices_pairs_settings_and_seed():
    swapped = TOKENS._replace(source=TOKENS.target, target=TOKENS.source)
    made = [
        DATA.build(TOKENS),
        DATA.build(TOKENS, seed=1),
        DATA.build(swapped),
        DATA.edit(buckets=4).build(TOKENS),
    ]
    assert len({batches.fingerprint for batches in made}) == len(made)
    assert DATA.build(TokenPairs.of(TEXT, TOKENIZER)).fingerprint == made[0].fingerprint


def test_shapes_are_few_and_within_the_number_of_tokens():
    batches = [DATA.build(TOKENS)(step) for step in range(DATA.steps(TOKENS, 1))]
    shapes = {(batch.source.shape, batch.target.shape) for batch in batches}
    assert 2 <= len(shapes) <= 3
    for (rows, width), target in shapes:
        assert target == (rows, width + 1)
        assert rows * width <= 192
        assert rows % 8 == 0


@pytest.mark.parametrize(("tokens", "longest", "even"), [(100, 10, 8), (100, 10, 1), (192, 20, 8)])
def test_the_shape_is_that_of_the_widest_batch(tokens, longest, even):
    data = Pairs(tokens=tokens, longest=longest, even=even)
    wide = TOKENS.only(TOKENS.widths <= longest)
    ids = np.zeros(longest, np.int32)
    widest = wide._replace(source=Rows.joined([wide.source, Rows.of([ids])]))
    widest = widest._replace(
        target=Rows.joined([wide.target, Rows.of([ids[1:]])]), lines=np.append(wide.lines, 9)
    )
    batches = data.in_turn(widest)
    assert data.shape == max((b.source.shape for b in batches), key=lambda shape: shape[1])


def test_most_of_a_batch_is_no_padding():
    batches = DATA.in_turn(TOKENS)
    places = sum(batch.source.size for batch in batches)
    assert sum(batch.source_valid.sum() for batch in batches) > 0.75 * places


def test_in_turn_every_pair_is_there_exactly_once():
    assert Counter(p for batch in DATA.in_turn(TOKENS) for p in texts(batch)) == Counter(PAIRS)


def test_sources_end_and_targets_begin_and_end_with_their_signs():
    batch = TOKENS.batch(np.array([5, -1, 7]), 20)
    for row, place in enumerate([5, None, 7]):
        if place is None:
            assert not batch.source_valid[row].any()
            assert not batch.target_weights[row].any()
            continue
        source, target = (TOKENIZER.encode(text) for text in PAIRS[place])
        valid, counts = batch.source_valid[row], batch.target_weights[row]
        np.testing.assert_array_equal(batch.source[row][valid], [*source, TOKENIZER.end])
        expected = [TOKENIZER.start, *target, TOKENIZER.end]
        np.testing.assert_array_equal(batch.target[row][counts], expected)
    assert (batch.source[~batch.source_valid] == TOKENIZER.padding).all()
    assert (batch.target[~batch.target_weights] == TOKENIZER.padding).all()


def test_rows_are_padded_as_one_by_one():
    rows = [np.arange(length, dtype=np.int32) + 1 for length in (3, 0, 5, 1)]
    ids, valid = Rows.of(rows).padded(np.array([2, 0, -1, 1, 3]), 6, 9)
    for got, real, place in zip(ids, valid, [2, 0, None, 1, 3], strict=True):
        row = [] if place is None else rows[place].tolist()
        assert got.tolist() == row + [9] * (6 - len(row))
        assert real.tolist() == [True] * len(row) + [False] * (6 - len(row))


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_widths_are_those_with_the_least_padding(count):
    lengths = np.random.default_rng(count).integers(3, 14, 60)
    sizes = np.unique(lengths)
    found = best_widths(lengths, count)

    def cost(widths):
        return sum(min(width for width in widths if width >= length) for length in lengths)

    tried = itertools.combinations(sizes[:-1], min(count, len(sizes)) - 1)
    best = min(cost([*widths, sizes[-1]]) for widths in tried)
    assert list(found) == sorted(set(found))
    assert len(found) <= count
    assert cost(found) == best


def unfit():
    source, target = list(TEXT.source), list(TEXT.target)
    source[6], target[11] = "", "a" * 40
    return TokenPairs.of(ParallelText(tuple(source), tuple(target)), TOKENIZER)


def test_pairs_that_do_not_fit_are_counted_and_the_first_is_named():
    message = r"2 pairs are longer than 20 tokens or empty on one side, the first on line 7\."
    with pytest.raises(ValueError, match=message):
        DATA.fitting(unfit())


def test_pairs_that_do_not_fit_are_dropped_where_that_is_asked():
    kept = DATA.edit(unfit="drop").fitting(unfit())
    assert sorted({*range(1, 204)} - {*kept.lines.tolist()}) == [7, 12]
    expected = Counter(pair for place, pair in enumerate(PAIRS) if place not in (6, 11))
    assert Counter(p for batch in DATA.in_turn(kept) for p in texts(batch)) == expected


def test_no_pair_at_all_is_refused():
    with pytest.raises(ValueError, match="No pair is left"):
        Pairs(tokens=128, longest=2, unfit="drop").fitting(TOKENS)


MAKES = {
    "build": lambda data, pairs: data.build(pairs),
    "steps": lambda data, pairs: data.steps(pairs, epochs=1),
    "in_turn": lambda data, pairs: data.in_turn(pairs),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_batches_are_made_only_of_pairs_that_fit(make):
    widths = unfit().widths
    message = rf"more than `longest` tokens, or `tokens`; got {widths[11]} on line 12, longest=20"
    with pytest.raises(ValueError, match=rf"{message}, tokens=192\. Call `fitting` first"):
        make(DATA, unfit())
    with pytest.raises(ValueError, match=r"got \d+ on line \d+, longest=20, tokens=4\. Call"):
        make(DATA.edit(tokens=4), TOKENS)
    with pytest.raises(ValueError, match=r"at least one pair; got none\. Call `fitting` first"):
        make(DATA, TOKENS.only(np.zeros(len(PAIRS), bool)))


def test_padding_that_is_the_end_is_refused():
    class Same(Subwords):
        @property
        def padding(self):
            return self.end

    with pytest.raises(ValueError, match="the end would never be learned"):
        TokenPairs.of(TEXT, Same(TOKENIZER.json))
    with pytest.raises(ValueError, match="an id for padding, start, end"):
        TokenPairs.of(TEXT, Characters.of("abc"))


@pytest.mark.parametrize("name", ["tokens", "buckets", "longest"])
def test_sizes_are_positive(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1"):
        Pairs(**{name: 0})


def test_the_longest_pair_must_fit_into_a_batch():
    with pytest.raises(ValueError, match="`longest` may be at most `tokens`"):
        Pairs(tokens=100, longest=101).fitting(TOKENS)
    assert Pairs(tokens=100, longest=40).shape == (2, 40)


@pytest.mark.parametrize("even", [1, 8, 16])
def test_rows_of_batches_are_among_those_that_are_announced(even):
    data = Pairs(tokens=320, buckets=4, longest=20, even=even)
    rows = {data.build(TOKENS)(step).source.shape[0] for step in range(40)}
    assert len(rows) > 1
    assert rows <= data.row_counts
    assert all(count % even == 0 for count in data.row_counts)
