import itertools
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eqxformer as ef
from eqxformer.data.feed import feed
from eqxformer.data.packing import Packing, packed, shuffled
from eqxformer.data.share import Share

lengths_of_documents = st.lists(st.integers(0, 40), min_size=1, max_size=40)


def documents_of(lengths):
    """Documents in which no token occurs twice."""
    ends = np.cumsum(lengths)
    return [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def predicted(batch):
    """The (token, next token) pairs that a batch asks for, read off cell by cell."""
    rows = [np.atleast_2d(a) for a in (batch.tokens, batch.weights, batch.segments)]
    return [
        (int(tokens[i - 1]), int(tokens[i]))
        for tokens, weights, segments in zip(*rows, strict=True)
        for i in range(1, len(tokens))
        if weights[i] and segments[i] == segments[i - 1]
    ]


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of_documents, length=st.integers(1, 12))
def test_every_token_but_a_documents_first_is_predicted_exactly_once(lengths, length):
    documents = documents_of(lengths)
    wanted = [pair for ids in documents for pair in itertools.pairwise(ids)]
    if not wanted:
        with pytest.raises(ValueError, match="nothing to predict"):
            Packing(length, 1).rows(documents)
        return
    rows = Packing(length, 1).rows(documents)
    found = [pair for number in range(len(rows)) for pair in predicted(rows[number])]
    assert sorted(found) == sorted(wanted)


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of_documents, length=st.integers(1, 12))
def test_a_document_that_fits_is_whole_and_its_positions_count_from_zero(lengths, length):
    plan = packed(np.array(lengths), length)
    whole = {d for d, n in enumerate(lengths) if 0 < n <= length + 1}
    pieces = plan.document.tolist()
    assert all(pieces.count(d) == 1 for d in whole)
    assert set(pieces) == {d for d, n in enumerate(lengths) if n}
    if not (plan.size > 1).any():
        return
    for row in Packing(length, 1).rows(documents_of(lengths)):
        for segment in range(1, row.segments.max() + 1):
            places = row.positions[row.segments == segment]
            np.testing.assert_array_equal(places, np.arange(len(places)))
        empty = row.segments == 0
        assert not row.weights[empty].any()
        assert (row.weights[~empty] == 1).all()


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=60), length=st.integers(11, 16))
def test_rows_are_few_and_none_is_overfull(lengths, length):
    plan = packed(np.array(lengths), length)
    filled = np.add.reduceat(plan.size, np.concatenate([[0], plan.ends[:-1]]))
    assert filled.max() <= length + 1
    assert filled.sum() == sum(lengths)
    fewest = -(-sum(lengths) // (length + 1))
    assert len(plan.ends) <= 11 / 9 * fewest + 4
    pairs = np.sort(filled)[:2]
    assert len(pairs) < 2 or pairs.sum() > length + 1, "two rows would fit into one"


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 300), seed=st.integers(0, 2**40), epoch=st.integers(0, 5))
def test_an_epochs_order_is_a_permutation(count, seed, epoch):
    order = shuffled(count, seed)
    seen = [order[epoch * count + place] for place in range(count)]
    assert sorted(seen) == list(range(count))


def test_no_two_epochs_of_any_seeds_have_the_same_order():
    seen = set()
    for seed in range(4):
        order = shuffled(50, seed)
        for epoch in range(4):
            seen.add(tuple(order[epoch * 50 + place] for place in range(50)))
    assert len(seen) == 16


LENGTHS = np.random.default_rng(0).integers(1, 30, 57).tolist()
DOCUMENTS = documents_of(LENGTHS)
PACKING = Packing(length=15, batch=4)


def test_epochs_go_on_across_batches_and_each_has_every_row_once():
    rows, batches = PACKING.rows(DOCUMENTS), PACKING.build(DOCUMENTS, seed=1)
    count = len(rows)
    steps = -(-3 * count // 4)
    assert count % 4, "an epoch's end is to be within a batch"
    first = np.concatenate([batches(step).tokens for step in range(steps)])
    wanted = sorted(row.tokens.tolist() for row in rows)
    for epoch in range(3):
        assert sorted(first[epoch * count : (epoch + 1) * count].tolist()) == wanted


def test_a_batch_is_a_pure_function_of_seed_and_step():
    one, other = PACKING.build(DOCUMENTS, seed=3), PACKING.build(DOCUMENTS, seed=3)
    for step in (9, 2, 5):
        jax.tree.map(np.testing.assert_array_equal, one(step), other(step))
    batch = one(2)
    assert batch.tokens.shape == batch.segments.shape == batch.positions.shape == (4, 16)
    assert batch.tokens.dtype == np.int32
    different = PACKING.build(DOCUMENTS, seed=4)
    assert any((one(step).tokens != different(step).tokens).any() for step in range(3))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_shares_of_processes_are_together_the_batch_of_one(count):
    whole = PACKING.build(DOCUMENTS, seed=3)
    shares = [PACKING.build(DOCUMENTS, seed=3, share=Share(i, count)) for i in range(count)]
    for step in range(30):
        parts = [share(step).tokens for share in shares]
        assert {len(part) for part in parts} == {4 // count}
        np.testing.assert_array_equal(np.concatenate(parts), whole(step).tokens)
    assert {share.fingerprint for share in shares} == {whole.fingerprint}


def test_a_process_reads_only_the_documents_of_its_share():
    class Counted(list):
        def __getitem__(self, number):
            read.add(number)
            return super().__getitem__(number)

    read, documents = set(), Counted(DOCUMENTS)
    rows, read_by = PACKING.rows(documents), []
    for index in range(2):
        batches = PACKING.build(documents, seed=3, share=Share(index, 2))
        read.clear()
        batches(0)
        read_by.append(set(read))
    order, of_row = shuffled(len(rows), 3), np.split(rows.plan.document, rows.plan.ends[:-1])
    for index, found in enumerate(read_by):
        own = [order[2 * index], order[2 * index + 1]]
        assert found == {int(d) for row in own for d in of_row[row]}


def test_validation_has_every_row_once_and_counts_nothing_twice():
    batches = PACKING.once(DOCUMENTS)
    assert {batch.tokens.shape for batch in batches} == {(4, 16)}
    found = sorted(pair for batch in batches for pair in predicted(batch))
    assert found == sorted((a, a + 1) for ids in DOCUMENTS for a in ids[:-1].tolist())


def test_the_fingerprint_notices_documents_settings_and_seed():
    changed = [ids.copy() for ids in DOCUMENTS]
    changed[7][0] += 1
    moved = [DOCUMENTS[1], DOCUMENTS[0], *DOCUMENTS[2:]]
    made = [
        PACKING.build(DOCUMENTS),
        PACKING.build(DOCUMENTS, seed=1),
        PACKING.build(changed),
        PACKING.build(moved),
        PACKING.edit(batch=8).build(DOCUMENTS),
    ]
    assert len({feed(batches).fingerprint for batches in made}) == len(made)
    assert PACKING.build(list(DOCUMENTS)).fingerprint == made[0].fingerprint


def test_rows_are_a_source_for_grain_which_may_mix_them():
    import grain

    one, other = (Packing(15, 1).rows(part) for part in (DOCUMENTS[:30], DOCUMENTS[30:]))
    parts = [grain.MapDataset.source(rows).seed(0).shuffle().repeat() for rows in (one, other)]
    mixed = grain.MapDataset.mix(parts, weights=[0.75, 0.25]).batch(8)
    batch = ef.feed(mixed).next_batch()
    assert batch.tokens.shape == (8, 16)
    first = min(ids[0] for ids in DOCUMENTS[30:])
    assert sum(row[0] >= first for row in batch.tokens) == 2


def test_what_cannot_be_packed_or_shared_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="`length` must be at least 1; got 0"):
        Packing(0, 1)
    with pytest.raises(ValueError, match="nothing to predict in 2 documents"):
        PACKING.rows([np.array([3]), np.array([], np.int32)])
    with pytest.raises(ValueError, match="`seed` must be at least 0; got -1"):
        PACKING.build(DOCUMENTS, seed=-1)
    with pytest.raises(ValueError, match="`batch` must be a multiple of the 3 processes"):
        PACKING.build(DOCUMENTS, share=Share(0, 3))
    with pytest.raises(ValueError, match="`index` must be from 0 to below `count`"):
        Share(2, 2)
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"pip install 'eqxformer\[train\]'"):
        PACKING.build(DOCUMENTS)


def test_a_single_process_has_all_of_a_batch():
    assert Share.of_this_process() == Share()


@pytest.mark.parametrize(
    "document", ["12", np.array([1.5, 2.0]), np.array([-1, 2]), np.array([[1, 2]]), 7], ids=repr
)
def test_a_document_that_is_no_row_of_ids_is_refused_before_the_first_batch(document):
    """NumPy would take the text "12" for two tokens 12, and 1.5 for 1."""
    with pytest.raises(ValueError, match="Document 1 cannot be packed"):
        PACKING.rows([np.arange(5), document])
