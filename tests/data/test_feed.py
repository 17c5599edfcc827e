import json
import os
import subprocess
import sys
import threading

import grain
import numpy as np
import pytest

from eqxformer.data.feed import feed
from eqxformer.data.packing import Packing
from eqxformer.data.share import Share
from eqxformer.data.windows import Epochs


def of_steps(step):
    return np.random.default_rng((3, step)).integers(0, 100, 4)


def dataset():
    return grain.MapDataset.source(np.arange(10)).seed(3).shuffle().repeat().batch(3)


def packed():
    documents = [np.arange(n) + 7 * n for n in range(2, 20)]
    return Packing(length=24, batch=3).build(documents, seed=2)


SOURCES = {
    "function": lambda: feed(of_steps),
    "function, ahead": lambda: feed(of_steps, ahead=2),
    "MapDataset": lambda: feed(dataset()),
    "MapDataset, ahead": lambda: feed(dataset(), ahead=2),
    "IterDataset": lambda: feed(dataset().to_iter_dataset(grain.ReadOptions(2, 4))),
    "packing": lambda: feed(packed()),
    "windows": lambda: feed(Epochs(length=5, batch=3).build(np.arange(60))),
    "iterator": lambda: feed(iter(dataset().to_iter_dataset(grain.ReadOptions(1, 2)))),
}
each = pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)


def some(feed, count):
    """The next batches, of tokens those."""
    batches = [feed.next_batch() for _ in range(count)]
    return np.stack([getattr(batch, "tokens", batch) for batch in batches])


@pytest.fixture
def closing():
    """Makes feeds and closes them at the end."""
    made = []

    def make(source):
        made.append(source())
        return made[-1]

    yield make
    for one in made:
        one.close()


@each
def test_a_feed_goes_on_from_a_position_as_if_it_had_never_stopped(make, closing):
    whole = some(closing(make), 9)
    first = closing(make)
    np.testing.assert_array_equal(some(first, 4), whole[:4])
    position = json.loads(json.dumps(first.position()))
    some(first, 2)
    second = closing(make)
    second.move_to(position)
    np.testing.assert_array_equal(some(second, 5), whole[4:])
    second.move_to(position)
    assert second.position() == position
    np.testing.assert_array_equal(some(second, 5), whole[4:])


def test_reading_ahead_changes_no_batch(closing):
    for name in ("function", "MapDataset"):
        one, other = closing(SOURCES[name]), closing(SOURCES[f"{name}, ahead"])
        np.testing.assert_array_equal(some(one, 12), some(other, 12))
        assert one.position() == other.position()


def test_another_process_goes_on_where_this_one_stood(closing):
    """What a position says is all that a restarted run has."""
    source = """
import json, sys
from tests.data.test_feed import SOURCES, some
for name, position in json.loads(sys.argv[1]).items():
    feed = SOURCES[name]()
    feed.move_to(position)
    print(json.dumps(some(feed, 3).tolist()))
    feed.close()
"""
    feeds = {name: closing(make) for name, make in SOURCES.items()}
    for number, one in enumerate(feeds.values(), 3):
        some(one, number)
    positions = json.dumps({name: one.position() for name, one in feeds.items()})
    done = subprocess.run(
        [sys.executable, "-c", source, positions],
        env={**os.environ, "EQXFORMER_CHECKS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == [some(one, 3).tolist() for one in feeds.values()]


def test_batches_of_a_function_are_made_by_one_thread_ahead_of_their_step():
    made, gate = [], threading.Event()

    def batches(step):
        made.append((step, threading.current_thread()))
        if step == 2:
            gate.set()
        return step

    one = feed(batches, ahead=2)
    assert one.next_batch() == 0
    assert gate.wait(60), "steps 1 and 2 were not made before they were asked for"
    assert one.position() == {"step": 1}
    assert [one.next_batch() for _ in range(5)] == [1, 2, 3, 4, 5]
    one.close()
    threads = {thread for _, thread in made}
    assert len(threads) == 1
    assert threading.current_thread() not in threads
    assert [step for step, _ in made] == list(range(len(made)))


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_of_a_function_is_raised_at_its_step_and_loses_no_batch(ahead):
    failing = [3]

    def batches(step):
        if step in failing:
            raise OSError(f"no step {step}")
        return step

    one = feed(batches, ahead=ahead)
    assert [one.next_batch() for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(OSError, match="no step 3"):
            one.next_batch()
        assert one.position() == {"step": 3}
    failing.clear()
    assert [one.next_batch() for _ in range(3)] == [3, 4, 5]
    one.close()


def test_the_end_of_the_data_is_an_error_that_says_what_to_do():
    one = feed(grain.MapDataset.source(np.arange(6)).batch(3))
    some(one, 2)
    with pytest.raises(ValueError, match=r"come to their end; repeat them with `.repeat\(\)`"):
        one.next_batch()


def test_a_position_of_other_data_is_refused():
    one, other = (feed(of_steps, fingerprint=name) for name in ("a1", "b2"))
    some(one, 2)
    assert one.position() == {"step": 2, "fingerprint": "a1"}
    with pytest.raises(ValueError, match="fingerprint was a1, and is now b2"):
        other.move_to(one.position())
    with pytest.raises(ValueError, match="fingerprint was a1, and is now None"):
        feed(of_steps).move_to(one.position())
    assert other.position() == {"step": 0, "fingerprint": "b2"}


def test_a_fingerprint_is_taken_from_what_has_one():
    class Batches:
        fingerprint = "c3"

        def __call__(self, step):
            return step

    assert feed(Batches()).fingerprint == "c3"
    assert feed(Batches(), fingerprint="d4").fingerprint == "d4"


@each
@pytest.mark.parametrize(
    "position",
    [{}, {"step": -1}, {"step": 1.0}, {"iterator": {}}, {"iterator": {"next_index": -1}}],
    ids=str,
)
def test_a_position_that_is_none_of_this_feed_is_refused_and_changes_nothing(
    make, position, closing
):
    one = closing(make)
    some(one, 2)
    before = one.position()
    position = {**position, **{key: before[key] for key in before if key == "fingerprint"}}
    with pytest.raises(ValueError, match="has no place"):
        one.move_to(position)
    assert one.position() == before
    np.testing.assert_array_equal(some(one, 2), some(closing(make), 4)[2:])


def test_what_gives_no_batches_is_refused():
    with pytest.raises(TypeError, match="function from the number of a step.*got list"):
        feed([1, 2])
    with pytest.raises(ValueError, match="at least 0 batches; got -1"):
        feed(of_steps, ahead=-1)
    with pytest.raises(ValueError, match=r"reads ahead by itself: give `grain.ReadOptions`"):
        feed(dataset().to_iter_dataset(), ahead=1)
    one = feed(of_steps)
    assert feed(one) is one


def loader():
    sampler = grain.samplers.IndexSampler(10, seed=3, shuffle=True, num_epochs=None)
    batched = [grain.transforms.Batch(3)]
    return grain.DataLoader(data_source=np.arange(10), sampler=sampler, operations=batched)


def test_a_position_of_a_data_loader_is_json_and_leads_back(closing):
    first = closing(lambda: feed(loader()))
    expected = some(first, 5)[2:]
    again = closing(lambda: feed(loader()))
    some(again, 2)
    position = json.loads(json.dumps(again.position()))
    third = closing(lambda: feed(loader()))
    third.move_to(position)
    np.testing.assert_array_equal(some(third, 3), expected)


def test_a_feed_knows_of_how_many_shares_it_is_one():
    documents = [np.arange(n) + 7 * n for n in range(2, 20)]
    half = Packing(length=24, batch=2).build(documents, share=Share(index=1, count=2))
    assert (feed(half).shares, feed(packed()).shares, feed(of_steps).shares) == (2, 1, 1)
    assert feed(dataset(), shares=4).shares == 4
