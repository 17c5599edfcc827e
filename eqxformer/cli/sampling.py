"""The options that say how tokens are chosen, laid over what a checkpoint says itself."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import click

from eqxformer.generation.constraints import NoRepeatNGram
from eqxformer.generation.penalties import RepetitionPenalty
from eqxformer.generation.processors import Processor
from eqxformer.generation.settings import GenerationSettings
from eqxformer.generation.warpers import MinP, Temperature, TopK, TopP, Typical

Command = TypeVar("Command", bound=Callable[..., Any])

# The part of each option, and the value with which it changes nothing, in the order of doing.
_PROCESSORS: dict[str, tuple[type[Processor], float]] = {
    "repetition_penalty": (RepetitionPenalty, 1.0),
    "no_repeat_ngram": (NoRepeatNGram, 0),
}
_WARPERS: dict[str, tuple[type[Processor], float]] = {
    "temperature": (Temperature, 1.0),
    "top_k": (TopK, 0),
    "top_p": (TopP, 1.0),
    "min_p": (MinP, 0.0),
    "typical": (Typical, 1.0),
}

_OPTIONS = [
    click.option("--temperature", type=float, help="0: always the likeliest."),
    click.option("--top-k", type=int, help="Choose among so many of the likeliest only; 0: all."),
    click.option("--top-p", type=float, help="Among the likeliest that make up this share."),
    click.option("--min-p", type=float, help="Among those at this share of the likeliest one's."),
    click.option("--typical", type=float, help="Among those of about the expected surprise."),
    click.option(
        "--repetition-penalty", type=float, help="Above 1, what was there is less likely."
    ),
    click.option("--no-repeat-ngram", type=int, help="No so many tokens in a row twice; 0: no."),
    click.option("--beams", type=int, help="Search for the likeliest text, so many side by side."),
    click.option("--length-penalty", type=float, help="Above 0, a beam search likes long texts."),
]


def sampling_options(command: Command) -> Command:
    """Adds the options of this module to a command, which gets them by `**asked`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def over(settings: GenerationSettings, asked: dict[str, Any]) -> GenerationSettings:
    """The settings with what was asked for in place of what they say of the same.

    Raises `ValueError` for numbers that make no sense.
    """
    asked = {name: value for name, value in asked.items() if value is not None}
    changes: dict[str, Any] = {
        name: asked[name] for name in ("beams", "length_penalty") if name in asked
    }
    if asked.get("beams", 1) < 1:
        raise ValueError(f"`beams` must be at least 1; got {asked['beams']}.")
    warmth = asked.get("temperature")
    if warmth == 0:
        asked.pop("temperature")
        changes["samples"] = False
    elif asked.keys() & _WARPERS.keys():
        changes["samples"] = True
    if asked.get("beams", 1) > 1:
        if asked.keys() & _WARPERS.keys():
            raise ValueError("A beam search draws nothing: leave --temperature, --top-k etc. away.")
        changes["samples"] = False
    if "length_penalty" in asked and (changes.get("beams") or settings.beams) == 1:
        raise ValueError("--length-penalty is for a beam search; add --beams, such as --beams 4.")
    changes["processors"] = _changed(settings.processors, _PROCESSORS, asked)
    changes["warpers"] = _changed(settings.warpers, _WARPERS, asked)
    return dataclasses.replace(settings, **changes)


def _changed(
    parts: tuple[Processor, ...],
    kinds: dict[str, tuple[type[Processor], float]],
    asked: dict[str, Any],
) -> tuple[Processor, ...]:
    """The parts with those that were asked for, in the order in which they are done."""
    if not asked.keys() & kinds.keys():
        return parts
    for name, (kind, neutral) in kinds.items():
        if name not in asked:
            continue
        parts = tuple(part for part in parts if type(part) is not kind)
        if asked[name] != neutral:
            parts = (*parts, kind(asked[name]))  # pyright: ignore[reportCallIssue]
    order = [kind for kind, _ in kinds.values()]
    return tuple(sorted(parts, key=lambda part: _rank(part, order)))


def _rank(part: Processor, order: list[type[Processor]]) -> int:
    """Parts that are no option stay behind those that are, in the order they had."""
    return order.index(type(part)) if type(part) in order else len(order)
