"""Where batches come from: a feed gives one after the other, says where it stands, and goes there.

A trainer knows no more of its data than this. `feed` makes one of a function of the step, or of a
Grain dataset or iterator.
"""

import abc
import collections
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_MOST_THREADS = 16  # as many as Grain takes by default


class Feed(abc.ABC):
    """Batches in turn, from a place that can be written down and gone back to.

    `fingerprint` says what the data is, or is None where nobody knows. It is part of the position,
    so that no feed goes on with other data in the belief that they are the same. `shares` is how
    many processes bring a share of each batch; this one's is what `next_batch` gives. `alike` says
    that all of them stand at the same place then, so that others may go on, in any number.

    Example:
        >>> import eqxformer as ef
        >>> class Numbered(ef.Feed):
        ...     number = 0
        ...     def next_batch(self):
        ...         self.number += 1
        ...         return f"batch {self.number}"
        ...     def place(self):
        ...         return {"number": self.number}
        ...     def go(self, place):
        ...         self.number = place["number"]
        >>> feed = Numbered()
        >>> feed.move_to({"number": 7})
        >>> feed.next_batch(), feed.position()
        ('batch 8', {'number': 8})
    """

    fingerprint: str | None = None
    shares: int = 1
    alike: bool = False

    @abc.abstractmethod
    def next_batch(self) -> Any:
        """The next batch. Raises `ValueError` where the data have come to their end."""

    @abc.abstractmethod
    def place(self) -> dict[str, Any]:
        """Where the next batch is, as plain JSON values."""

    @abc.abstractmethod
    def go(self, place: dict[str, Any]) -> None:
        """Goes where `place` says; `ValueError`, `KeyError` or the like where that is nowhere."""

    def close(self) -> None:  # noqa: B027  (most have nothing to close)
        """Lets threads and files go; nothing to let go by default."""

    def position(self) -> dict[str, Any]:
        """Where the next batch is and of which data, as plain JSON values of one's own."""
        place = json.loads(json.dumps(self.place()))
        return place if self.fingerprint is None else {**place, "fingerprint": self.fingerprint}

    def move_to(self, position: dict[str, Any]) -> None:
        """Goes to where a `position` was taken: the next batch is the one that came next there.

        Raises `ValueError` for a position of other data, and for one that is none of this feed.
        """
        place = dict(position)
        before = place.pop("fingerprint", None)
        if before != self.fingerprint:
            raise ValueError(
                "The data are not those of this position, or other batches are made of them: the "
                f"fingerprint was {_brief(before)}, and is now {_brief(self.fingerprint)}. "
                "Go on with the same data and settings, or begin anew."
            )
        here = self.place()
        try:
            self.go(place)
        except (LookupError, TypeError, ValueError) as error:
            self.go(here)
            raise ValueError(
                f"{type(self).__name__} has no place {place}: {error}. "
                "A position serves the kind of data that it was taken from."
            ) from error


def feed(
    batches: Any, *, ahead: int = 0, fingerprint: str | None = None, shares: int | None = None
) -> Feed:
    """The feed of what gives batches.

    Arguments:
        batches: a function from the number of a step, from 0 on, to its batch, such as
            `Packing(...).build(documents)`; a `grain.MapDataset` whose elements are batches; a
            `grain.IterDataset`, or an iterator with `get_state` and `set_state` as Grain's have; or
            a `Feed`, which stays as it is.
        ahead: how many batches are made before they are asked for, by threads in the background:
            one after the other for a function. A `grain.IterDataset` and an iterator read ahead by
            themselves, as they were told when made.
        fingerprint: what the data is; by default what `batches` calls its `fingerprint`, if it has
            one.
        shares: how many processes bring a share of each batch, of which these are one; by default
            what `batches` calls its `shares`, else 1: every process has the whole batch.

    Raises `TypeError` for anything else.

    Example:
        >>> import eqxformer as ef
        >>> feed = ef.feed(lambda step: f"batch {step}", ahead=2)
        >>> feed.next_batch(), feed.next_batch()
        ('batch 0', 'batch 1')
        >>> feed.position()
        {'step': 2}
        >>> feed.move_to({"step": 1})
        >>> feed.next_batch()
        'batch 1'
        >>> feed.close()
    """
    if ahead < 0:
        raise ValueError(f"`ahead` must be at least 0 batches; got {ahead}.")
    if isinstance(batches, Feed):
        return batches
    if fingerprint is None:
        fingerprint = getattr(batches, "fingerprint", None)
    found = _feed(batches, ahead, fingerprint)
    found.shares = getattr(batches, "shares", 1) if shares is None else shares
    return found


def _feed(batches: Any, ahead: int, fingerprint: str | None) -> Feed:
    if hasattr(batches, "to_iter_dataset"):
        iterator = iter(batches.to_iter_dataset(_reading(ahead)))
        return IteratorFeed(iterator, fingerprint, closes=True)
    if callable(batches):
        return StepFeed(batches, ahead, fingerprint)
    iterator = iter(batches) if hasattr(batches, "__iter__") else None
    if not (hasattr(iterator, "get_state") and hasattr(iterator, "set_state")):
        raise TypeError(
            "`batches` must be a function from the number of a step to its batch, a Grain dataset, "
            f"or an iterator with `get_state` and `set_state`; got {type(batches).__name__}."
        )
    if ahead:
        raise ValueError(
            f"{type(batches).__name__} reads ahead by itself: give `grain.ReadOptions` where it is "
            "made, and leave `ahead` away."
        )
    return IteratorFeed(iterator, fingerprint, closes=iterator is not batches)


class StepFeed(Feed):
    """The batches of a function of the step; its position is the number of the next step."""

    alike = True

    def __init__(
        self, batches: Callable[[int], Any], ahead: int = 0, fingerprint: str | None = None
    ) -> None:
        self.fingerprint = fingerprint
        self._batches, self._ahead, self._step = batches, ahead, 0
        self._made: collections.deque[Future[Any]] = collections.deque()
        # One thread, so that the function need not be safe to call from several at a time.
        self._thread = ThreadPoolExecutor(1, "eqxformer-feed") if ahead else None

    def next_batch(self) -> Any:
        batch = self._batches(self._step) if self._thread is None else self._from(self._thread)
        self._step += 1
        return batch

    def _from(self, thread: ThreadPoolExecutor) -> Any:
        while len(self._made) <= self._ahead:
            self._made.append(thread.submit(self._batches, self._step + len(self._made)))
        try:
            return self._made.popleft().result()
        except BaseException:
            self._forget()  # what was made of later steps is not what comes next
            raise

    def _forget(self) -> None:
        for future in self._made:
            future.cancel()
        self._made.clear()

    def place(self) -> dict[str, Any]:
        return {"step": self._step}

    def go(self, place: dict[str, Any]) -> None:
        if set(place) != {"step"} or type(place["step"]) is not int or place["step"] < 0:
            raise ValueError("it must be a step from 0 on")
        self._forget()
        self._step = place["step"]

    def close(self) -> None:
        self._forget()
        if self._thread is not None:
            self._thread.shutdown(wait=False)


class IteratorFeed(Feed):
    """The batches of an iterator of Grain, or of one that keeps its state likewise.

    `closes` says whether the iterator ends with the feed; one that somebody else holds does not.
    """

    def __init__(
        self, iterator: Any, fingerprint: str | None = None, *, closes: bool = False
    ) -> None:
        self.fingerprint = fingerprint
        self._iterator, self._closes = iterator, closes

    def next_batch(self) -> Any:
        try:
            return next(self._iterator)
        except StopIteration:
            raise ValueError(
                "The data have come to their end; repeat them with `.repeat()`, or take fewer "
                f"steps. They stand at {self.place()}."
            ) from None

    def place(self) -> dict[str, Any]:
        state = self._iterator.get_state()
        return {"iterator": state.decode() if isinstance(state, bytes) else state}

    def go(self, place: dict[str, Any]) -> None:
        state = place["iterator"]
        bare = isinstance(self._iterator.get_state(), bytes)  # that of a `grain.DataLoader`
        self._iterator.set_state(state.encode() if bare else state)

    def close(self) -> None:
        if self._closes and hasattr(self._iterator, "close"):
            self._iterator.close()


def _brief(fingerprint: Any) -> str:
    return str(fingerprint)[:12]


def _reading(ahead: int) -> Any:
    """How Grain reads so many batches ahead."""
    import grain  # there, where a dataset of it is

    return grain.ReadOptions(num_threads=min(ahead, _MOST_THREADS), prefetch_buffer_size=ahead)
