import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqxformer.data.share import Share
from eqxformer.data.windows import Epochs, RandomWindows, consecutive

TOKENS = np.arange(1000, dtype=np.int32)


@pytest.mark.parametrize("windows", [RandomWindows(length=7, batch=5), Epochs(length=7, batch=5)])
def test_a_batch_is_a_pure_function_of_seed_and_step(windows):
    batches, again = windows.build(TOKENS, seed=3), windows.build(TOKENS, seed=3)
    forward = [batches(step).tokens for step in range(90)]
    backward = [again(step).tokens for step in reversed(range(90))][::-1]
    np.testing.assert_array_equal(forward, backward)
    other = windows.build(TOKENS, seed=4)
    assert any((forward[step] != other(step).tokens).any() for step in range(3))


@pytest.mark.parametrize("windows", [RandomWindows(length=7, batch=5), Epochs(length=7, batch=5)])
def test_every_row_is_a_window_of_the_text(windows):
    for step in range(50):
        tokens = windows.build(TOKENS)(step).tokens
        assert tokens.shape == (5, 8)
        assert tokens.dtype == np.int32
        np.testing.assert_array_equal(np.diff(tokens, axis=1), 1)


def test_random_windows_begin_at_every_place_and_nowhere_else():
    batches = RandomWindows(length=3, batch=50).build(np.arange(10))
    starts = np.concatenate([batches(step).tokens[:, 0] for step in range(20)])
    assert set(starts.tolist()) == set(range(7))


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(3, 200), length=st.integers(1, 20), batch=st.integers(1, 9), epochs=st.just(3)
)
def test_epochs_show_every_window_exactly_once_each(count, length, batch, epochs):
    tokens = np.arange(count)
    length = min(length, count - 1)
    windows = Epochs(length=length, batch=batch)
    each = windows.count(tokens)
    steps = windows.steps(tokens, epochs)
    build = windows.build(tokens)
    starts = np.concatenate([build(step).tokens[:, 0] for step in range(steps)])
    assert (steps - 1) * batch < epochs * each <= steps * batch
    for epoch in range(epochs):
        seen = starts[epoch * each : (epoch + 1) * each]
        assert sorted(seen.tolist()) == list(range(0, each * length, length))


def test_epochs_differ_in_their_order():
    windows = Epochs(length=10, batch=99)  # 99 windows in 1000 tokens: an epoch is one batch
    batches = windows.build(TOKENS)
    assert (batches(0).tokens != batches(1).tokens).any()


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 200), length=st.integers(1, 20), batch=st.integers(1, 9))
def test_consecutive_windows_predict_every_token_but_the_first_once(count, length, batch):
    tokens = np.arange(count, dtype=np.int32)
    batches = consecutive(tokens, length=length, batch=batch)
    assert {b.tokens.shape for b in batches} == {(batch, length + 1)}
    predicted = np.concatenate([b.tokens[:, 1:][b.weights[:, 1:]] for b in batches])
    assert sorted(predicted.tolist()) == list(range(1, count))


def test_fewer_consecutive_windows_are_spread_over_the_text():
    batches = consecutive(TOKENS, length=10, batch=4, most=2)
    starts = np.concatenate([b.tokens[:, 0] for b in batches])
    assert len(starts) == 8
    assert starts[0] == 0
    assert starts[-1] == 990
    assert len(set(starts.tolist())) == 8


@pytest.mark.parametrize("windows", [RandomWindows(length=10, batch=1), Epochs(length=10, batch=1)])
def test_a_text_shorter_than_a_window_is_refused(windows):
    assert windows.build(np.arange(11))(0).tokens.shape == (1, 11)
    with pytest.raises(ValueError, match="10 tokens has no window of 10"):
        windows.build(np.arange(10))


@pytest.mark.parametrize("sizes", [{"length": 0, "batch": 1}, {"length": 1, "batch": 0}])
def test_sizes_must_be_positive(sizes):
    with pytest.raises(ValueError, match="must be at least 1; got 0"):
        RandomWindows(**sizes)


@pytest.mark.parametrize("windows", [RandomWindows(length=7, batch=6), Epochs(length=7, batch=6)])
def test_the_shares_of_processes_are_together_the_batch_of_one(windows):
    whole = windows.build(TOKENS, seed=3)
    shares = [windows.build(TOKENS, seed=3, share=Share(index, 3)) for index in range(3)]
    for step in range(60):
        parts = [share(step).tokens for share in shares]
        assert [len(part) for part in parts] == [2, 2, 2]
        np.testing.assert_array_equal(np.concatenate(parts), whole(step).tokens)
    assert {share.fingerprint for share in shares} == {whole.fingerprint}


def test_the_fingerprint_notices_text_settings_and_seed():
    changed = TOKENS.copy()
    changed[500] = 3
    windows = Epochs(length=7, batch=5)
    made = [
        windows.build(TOKENS),
        windows.build(TOKENS, seed=1),
        windows.build(changed),
        windows.build(TOKENS[:-1]),
        windows.edit(batch=4).build(TOKENS),
        RandomWindows(length=7, batch=5).build(TOKENS),
    ]
    assert len({batches.fingerprint for batches in made}) == len(made)
    assert windows.build(TOKENS.copy()).fingerprint == made[0].fingerprint
