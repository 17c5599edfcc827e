"""Times of the day in words and in digits: a small set of sentences that belong together."""

from typing import NamedTuple

import numpy as np

from eqxformer.data.batches import Data

TIMES, KEPT_BACK_SEED = 24 * 60, 24
_IN_WORDS = (
    "The train leaves at {}.",
    "Let us meet at {}.",
    "The shop opens at {}.",
    "She called me at {}.",
    "Dinner is at {}.",
    "The film begins at {}.",
)
_IN_DIGITS = (
    "Departure {}",
    "Appointment: {}",
    "{} sharp",
    "Open from {}",
    "Missed call, {}",
    "Starts {}",
)
_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("zero", "ten", "twenty", "thirty", "forty", "fifty")


class Pairs(NamedTuple):
    """Sentences that tell times, in words and in digits, row by row."""

    in_words: list[str]
    in_digits: list[str]


class ClockTimes(Data):
    """Every minute of a day, told in words and in digits, in sentences that tell nothing else.

    Arguments:
        batch: times in a batch, all different.
        kept_back: times to validate with, which training never shows; the same in every run.
    """

    batch: int = 32
    kept_back: int = 240

    def check(self) -> None:
        most = TIMES - self.kept_back
        if self.kept_back < 2 or not 2 <= self.batch <= most:
            raise ValueError(
                f"`kept_back` must be at least 2, and `batch` from 2 to the {most} times that are "
                f"left; got kept_back={self.kept_back}, batch={self.batch}."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Times, and the words that tell one, more or less."""
        return self.batch, 16

    def to_learn(self, seed: int, step: int) -> Pairs:
        """The sentences of a step."""
        random = np.random.default_rng((seed, step))
        chosen = random.choice(_order()[self.kept_back :], self.batch, replace=False)
        return _pairs(chosen, random)

    def to_validate(self) -> Pairs:
        """The sentences kept back."""
        return _pairs(_order()[: self.kept_back], np.random.default_rng(KEPT_BACK_SEED))

    def longest(self) -> Pairs:
        """Every sentence there can be."""
        times = [divmod(minute, 60) for minute in range(TIMES)]
        return Pairs(
            [text.format(words(*time)) for text in _IN_WORDS for time in times],
            [text.format(digits(*time)) for text in _IN_DIGITS for time in times],
        )


def words(hour: int, minute: int) -> str:
    """A time as people say it.

    Example:
        >>> from eqxformer.training.recipes.clock import words
        >>> words(21, 15), words(15, 47), words(0, 0)
        ('a quarter past nine in the evening', 'thirteen minutes to four in the afternoon',
         "twelve o'clock at night")
    """
    when = _part_of_day(hour)
    if minute == 0:
        return f"{_number((hour - 1) % 12 + 1)} o'clock {when}"
    if minute == 30:
        return f"half past {_number((hour - 1) % 12 + 1)} {when}"
    apart, side = (minute, "past") if minute < 30 else (60 - minute, "to")
    name = _number((hour - 1 + (side == "to")) % 12 + 1)
    return f"{_minutes(apart)} {side} {name} {when}"


def digits(hour: int, minute: int) -> str:
    """A time as a timetable has it."""
    return f"{hour:02d}:{minute:02d}"


def _pairs(minutes: np.ndarray, random: np.random.Generator) -> Pairs:
    """Sentences of these minutes of the day, each in any of its forms."""
    times = [divmod(int(minute), 60) for minute in minutes]
    forms = random.integers(0, len(_IN_WORDS), (2, len(times)))
    return Pairs(
        [_IN_WORDS[i].format(words(*time)) for i, time in zip(forms[0], times, strict=True)],
        [_IN_DIGITS[i].format(digits(*time)) for i, time in zip(forms[1], times, strict=True)],
    )


def _order() -> np.ndarray:
    """All minutes of a day in an order that is the same in every run; the first are kept back."""
    return np.random.default_rng(KEPT_BACK_SEED).permutation(TIMES)


def _part_of_day(hour: int) -> str:
    if hour < 5 or hour >= 22:
        return "at night"
    if hour < 12:
        return "in the morning"
    return "in the afternoon" if hour < 18 else "in the evening"


def _minutes(count: int) -> str:
    if count == 15:
        return "a quarter"
    if count % 5 == 0:
        return _number(count)
    return f"{_number(count)} minute{'s' if count > 1 else ''}"


def _number(number: int) -> str:
    """A number below 60 in words."""
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")
