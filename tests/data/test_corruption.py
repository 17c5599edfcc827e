"""Noise has the properties of the papers it is from, and is a pure function of seed and step."""

import numpy as np
import pytest

from eqxformer.config import Config
from eqxformer.data.corruption import CorruptedWindows
from eqxformer.data.denoising import Denoising, Infill, Noise, PermuteSentences
from eqxformer.data.masking import MaskTokens
from eqxformer.data.prefixes import SplitAnywhere
from eqxformer.data.share import Share
from eqxformer.data.spans import SpanCorruption, parts
from tests.helpers.compare import same_bits

MASK, START, END, SENTINEL = 90, 91, 92, 99
SPANS = SpanCorruption(sentinel=SENTINEL, start=START, end=END, sentinels=7, fill=93)
BART = Denoising((Infill(MASK),), start=START, begin=94, end=END, fill=93)
KINDS = {
    "mask": MaskTokens(mask=MASK, vocab=50),
    "spans": SPANS,
    "denoising": BART,
    "prefix": SplitAnywhere(),
}
LENGTHS = np.array([40, 17, 2, 1, 0, 33])


def numbers(seed=0):
    return np.random.default_rng(seed)


def ragged(side):
    """Rows of several lengths, one of them empty, padded on a side."""
    tokens = numbers(1).integers(0, 50, (len(LENGTHS), 40)).astype(np.int32)
    valid = np.arange(40)[None] < LENGTHS[:, None]
    return tokens, valid if side == "right" else valid[:, ::-1]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_a_pure_function_of_seed_and_step(kind):
    tokens = numbers().integers(0, 50, 1000).astype(np.int32)
    data = CorruptedWindows(40, batch=3, corruption=KINDS[kind])
    assert Config.from_json(data.to_json()) == data

    def leaves(seed, step):
        batch = data.build(tokens, seed=seed)(step)
        return [np.asarray(x) for x in vars(batch).values() if x is not None]

    def same(one, other):
        return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))

    def cut(index):
        share = Share(index=index, count=3)
        return vars(data.build(tokens, seed=1, share=share)(5)).values()

    whole = leaves(1, 5)
    shares = zip(*([np.asarray(x) for x in cut(i) if x is not None] for i in range(3)), strict=True)
    assert same([np.concatenate(each) for each in shares], whole)
    prints = {data.build(tokens + add, seed=seed).fingerprint for add in (0, 1) for seed in (0, 1)}
    assert len(prints) == 4
    assert same(whole, leaves(1, 5))
    assert not same(leaves(1, 5), leaves(1, 6))
    assert not same(leaves(1, 5), leaves(2, 5))


def test_the_fingerprint_notices_text_noise_and_seed():
    tokens = np.arange(100, dtype=np.int32)
    data = CorruptedWindows(10, batch=2, corruption=KINDS["mask"])
    made = [
        data.build(tokens),
        data.build(tokens, seed=1),
        data.build(tokens[::-1].copy()),
        data.edit(corruption=MaskTokens(mask=MASK, vocab=51)).build(tokens),
    ]
    assert len({batches.fingerprint for batches in made}) == len(made)


def test_an_epoch_of_windows_has_every_token_once_and_those_to_validate_with_are_spread():
    tokens = np.arange(103, dtype=np.int32)
    data = CorruptedWindows(10, batch=2, corruption=MaskTokens(mask=999, vocab=103))
    batches = [data.build(tokens)(step).labels for step in range(5)]
    assert sorted(np.concatenate(batches).ravel()) == list(range(100))
    full = [data.build(tokens[:100])(step).labels for step in range(5)]  # no token behind the last
    assert sorted(np.concatenate(full).ravel()) == list(range(100))
    assert data.build(tokens[:10])(0).labels.tolist() == [list(range(10))] * 2
    with pytest.raises(ValueError, match="9 tokens has no window of 10"):
        data.build(tokens[:9])
    spread = data.spread(tokens, most=2)
    assert [batch.labels[:, 0].tolist() for batch in spread] == [[0, 30], [60, 90]]
    assert len(data.spread(tokens)) == 5
    assert len(data.spread(tokens[:13])) == 1
    with pytest.raises(ValueError, match="9 tokens has no window of 10"):
        data.spread(tokens[:9])


@pytest.mark.parametrize("kind", KINDS)
def test_ids_in_bytes_are_corrupted_as_wide_ones_are(kind):
    """The mask of a vocabulary of bytes is 256, which no byte is."""
    tokens = numbers().integers(0, 50, 400)
    noise = KINDS[kind]
    noise = noise.edit(mask=256, vocab=300) if kind == "mask" else noise
    data = CorruptedWindows(40, batch=3, corruption=noise)
    for make in (lambda text: data.build(text)(0), lambda text: data.spread(text)[0]):
        narrow, wide = (make(tokens.astype(dtype)) for dtype in (np.uint8, np.int32))
        assert same_bits(narrow, wide)


def test_a_mask_that_the_type_of_the_ids_does_not_hold_is_a_mask_all_the_same():
    rows, noise = numbers().integers(0, 50, (10, 40)), MaskTokens(mask=256, vocab=300)
    narrow, wide = (noise(rows.astype(t), random=numbers()) for t in (np.int8, np.int32))
    assert (wide.tokens == 256).any()
    assert same_bits(narrow, wide)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", KINDS)
def test_ones_and_zeros_are_not_taken_for_what_is_valid(kind):
    """They would be taken for places: tokens nought and one again and again."""
    tokens, valid = ragged("right")
    with pytest.raises(ValueError, match=r"true or false for every place of `tokens`, \[6, 40\]"):
        KINDS[kind](tokens, valid.astype(np.int32), random=numbers())
    with pytest.raises(ValueError, match=r"got bool\[40\]. Of ones and zeros"):
        KINDS[kind](tokens, valid[0], random=numbers())


def test_most_chosen_tokens_are_masked_some_replaced_and_some_left():
    tokens = np.full((400, 100), 60, np.int32)
    batch = KINDS["mask"](tokens, random=numbers())
    assert (batch.weights.sum(axis=1) == 15).all()  # the same share of every row
    assert (batch.labels == tokens).all()
    assert (batch.tokens[~batch.weights] == 60).all()
    hidden = batch.tokens[batch.weights]
    shares = [(hidden == MASK).mean(), (hidden < 50).mean(), (hidden == 60).mean()]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.02)  # 4 deviations of 6,000 draws
    assert set(hidden) == {MASK, 60, *range(50)}
    places = batch.weights.mean(axis=0)
    assert np.abs(places - 0.15).max() < 0.1


@pytest.mark.parametrize("side", ["left", "right"])
def test_neither_padding_nor_special_tokens_are_hidden(side):
    tokens, valid = ragged(side)
    tokens[:, ::3] = 7
    noise = MaskTokens(mask=MASK, vocab=50, share=0.5, special=(7,))
    batch = noise(tokens, valid, random=numbers())
    assert not batch.weights[~valid].any()
    assert not batch.weights[tokens == 7].any()
    candidates = (valid & (tokens != 7)).sum(axis=1)
    wanted = np.minimum(np.maximum(np.round(0.5 * candidates), 1), candidates)
    np.testing.assert_array_equal(batch.weights.sum(axis=1), wanted)


def restored(source, target):
    """The text behind a source and a target without padding, by what each sentinel stands for."""
    pieces, current = {}, None
    for token in target[1:-1]:
        if token > SENTINEL - SPANS.sentinels:
            current = pieces.setdefault(int(token), [])
        else:
            current.append(int(token))
    text = [pieces.get(int(token), [int(token)]) for token in source[:-1]]
    return [token for piece in text for token in piece], pieces


def test_source_and_target_of_spans_hold_every_token_in_the_share_of_the_paper():
    tokens = numbers().integers(0, 50, (200, 100)).astype(np.int32)
    batch = SPANS(tokens, random=numbers(1))
    assert batch.source_valid is None
    assert SPANS.counts(100) == (15, 5)
    assert batch.source.shape == (200, 85 + 5 + 1)
    assert batch.target.shape == (200, 1 + 15 + 5 + 1)
    assert (batch.target[:, 0] == START).all()
    assert (batch.source[:, -1] == END).all()
    assert (batch.target[:, -1] == END).all()
    for row, source, target in zip(tokens, batch.source, batch.target, strict=True):
        text, spans = restored(source, target)
        assert text == row.tolist()
        assert list(spans) == [SENTINEL - i for i in range(5)]
        places = np.flatnonzero(np.isin(source, list(spans)))
        assert (np.diff(places) > 1).all()  # no two spans touch
        assert places[0] > 0


def test_every_way_to_cut_a_number_into_parts_is_as_likely():
    random = numbers()
    found = [tuple(parts(5, 3, random)) for _ in range(3000)]
    kinds, counts = np.unique(found, axis=0, return_counts=True)
    assert len(kinds) == 6  # (1, 1, 3) in its 3 orders and (1, 2, 2) in its 3
    assert (kinds.sum(axis=1) == 5).all()
    assert np.abs(counts - 500).max() < 100  # 5 deviations
    assert parts(4, 1, random).tolist() == [4]
    assert parts(4, 4, random).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["spans", "denoising"])
def test_padding_takes_no_part_in_noise(kind, side):
    tokens, valid = ragged(side)
    tokens[~valid] = 60
    batch = KINDS[kind](tokens, valid, random=numbers())
    assert not (batch.source[batch.source_valid] == 60).any()
    assert (batch.source[~batch.source_valid] == 93).all()
    least = 2 if kind == "spans" else 1
    assert (batch.target_weights.any(axis=1) == (least <= LENGTHS)).all()
    if kind == "spans":
        for row, real, source, there, target, counts in zip(
            tokens,
            valid,
            batch.source,
            batch.source_valid,
            batch.target,
            batch.target_weights,
            strict=True,
        ):
            if counts.any():
                assert restored(source[there], target[counts])[0] == row[real].tolist()


@pytest.mark.parametrize("length", range(2, 60))
def test_texts_of_any_length_are_cut_within_the_width_of_longer_ones(length):
    noise, spans = SPANS.counts(length)
    assert 1 <= spans <= noise < length
    assert spans <= length - noise
    assert all(a <= b for a, b in zip(SPANS.widths(length), SPANS.widths(length + 1), strict=True))


def test_too_many_spans_for_the_sentinels_are_refused():
    with pytest.raises(ValueError, match="10 spans and there are 7 sentinels"):
        SPANS(np.zeros((1, 200), np.int32), random=numbers())
    with pytest.raises(ValueError, match="at least 2 tokens"):
        SPANS(np.zeros((1, 1), np.int32), random=numbers())


def test_infilled_spans_have_lengths_of_a_poisson_distribution_and_hide_the_share():
    noise, text = Infill(1000, share=0.3), np.arange(1000)
    lengths, random = [], numbers()
    for _ in range(40):
        made = np.asarray(noise(text, random))
        kept = made[made != 1000]
        assert len(kept) == 700
        assert (np.diff(kept) > 0).all()
        assert len(made) <= 1000
        spans = made == 1000
        alone = spans & ~np.roll(spans, 1) & ~np.roll(spans, -1)
        places = np.flatnonzero(alone[1:-1]) + 1
        lengths.extend(made[places + 1] - made[places - 1] - 1)
    lengths = np.array(lengths)
    poisson = np.exp(-3) * np.array([1, 3, 4.5, 4.5, 3.375])
    np.testing.assert_allclose([(lengths == n).mean() for n in range(5)], poisson, atol=0.03)
    assert (lengths == 0).any()


def test_spans_are_as_likely_early_as_late_and_rarer_only_near_the_ends():
    noise, text, random = Infill(1000, share=0.3), np.arange(24), numbers()
    hidden = np.mean([~np.isin(text, noise(text, random)) for _ in range(3000)], axis=0)
    assert np.abs(hidden - hidden[::-1]).max() < 0.06  # 5 deviations
    assert np.ptp(hidden[4:-4]) < 0.08
    np.testing.assert_allclose(hidden.mean(), round(0.3 * 24) / 24)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 10])
def test_infilling_never_makes_a_text_longer(length):
    random = numbers()
    assert all(len(Infill(MASK, 0.5)(np.arange(length), random)) <= length for _ in range(200))


def test_sentences_change_places_and_nothing_else():
    text, random = np.array([5, 6, 0, 7, 0, 8, 9]), numbers()
    found = {tuple(PermuteSentences(ends=(0,))(text, random)) for _ in range(100)}
    sentences = ((5, 6, 0), (7, 0), (8, 9))
    orders = [(a, b, c) for a in (0, 1, 2) for b in (0, 1, 2) for c in (0, 1, 2)]
    whole = [o for o in orders if len(set(o)) == 3]
    assert found == {tuple(t for i in o for t in sentences[i]) for o in whole}
    assert PermuteSentences(ends=(0,))(text[:0], random).shape == (0,)


def test_a_denoiser_reads_the_disturbed_text_and_writes_all_of_it():
    tokens = numbers().integers(0, 50, (8, 30)).astype(np.int32)
    noise = Denoising(
        (PermuteSentences(ends=(3,)), Infill(MASK)), start=END, begin=None, end=END, fill=93
    )
    batch = noise(tokens, random=numbers())
    assert (batch.target[:, 1:-1] == tokens).all()
    assert (batch.target[:, [0, -1]] == END).all()
    assert batch.target_weights is None
    assert (batch.source[batch.source_valid] == MASK).any()
    for source, valid in zip(batch.source, batch.source_valid, strict=True):
        assert source[valid][-1] == END
        assert (source[~valid] == 93).all()


class Twice(Noise):
    def __call__(self, row, random):
        return np.concatenate([row, row])


def test_noise_that_lengthens_a_text_is_named():
    noise = Denoising((Twice(),), start=0, begin=None, end=None, fill=0)
    with pytest.raises(ValueError, match="Twice made 10 tokens of 5"):
        noise(np.zeros((1, 5), np.int32), random=numbers())


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prefix_ends_anywhere_within_the_text(side):
    tokens, valid = ragged(side)
    tokens, valid = np.repeat(tokens[:3], 300, axis=0), np.repeat(valid[:3], 300, axis=0)
    batch = SplitAnywhere()(tokens, valid, random=numbers())
    begin = np.argmax(valid, axis=1)
    inside = batch.prefix - begin
    for number, length in enumerate(LENGTHS[:3]):
        found = inside[300 * number : 300 * (number + 1)]
        assert found.min() == 1
        assert found.max() == length - 1
    weights = np.asarray(batch.target_weights())
    np.testing.assert_array_equal(weights.sum(axis=1), valid.sum(axis=1) - inside)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskTokens(mask=1, vocab=5, share=0.0), "`share` must be above 0"),
        (lambda: MaskTokens(mask=1, vocab=5, masked=0.8, replaced=0.3), "1 together at most"),
        (lambda: MaskTokens(mask=1, vocab=0), "`vocab` at least 1"),
        (lambda: SpanCorruption(sentinel=9, start=0, end=1, density=1.0), "`density` must be"),
        (lambda: SpanCorruption(sentinel=9, start=0, end=1), "count down from `sentinel`"),
        (lambda: Infill(mask=1, mean=0.0), "`mean` above 0"),
        (lambda: PermuteSentences(ends=()), "at least one id"),
        (lambda: CorruptedWindows(1, batch=1, corruption=BART), "`length` must be at least 2"),
    ],
)
def test_noise_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
