"""Texts longer than those of the training, where rotary positions depend on how long a text is.

Keys go into a cache turned as they were when they were read. Where every place of a text is turned
otherwise as soon as the text is longer than those of the training (`LongRoPE`, `DynamicNTK`), a
text that is as long must be read in one pass, and one that grows as long be read anew.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from eqxformer.config import Config
from eqxformer.generation.prompts import bucket, passes
from eqxformer.layers.rotary import LongRoPE, Scaling

Lengths = Int[np.ndarray, " rows"]


def reads(config: Any, longest: int, chunk: int | None, before: int = 0) -> list[tuple[int, int]]:
    """Where each pass over prompts begins, and how many places it has; as `passes`.

    Arguments:
        config: of the decoder.
        longest: how many tokens there are to read.
        chunk: how many of them to read in a pass, where that was asked for.
        before: how many tokens there are in front of them.

    Raises `ValueError` for a `chunk` where all must be read in one pass.
    """
    bound = min((each.original_length for each in by_length(config)), default=None)
    if bound is None or before + longest <= bound or longest == 1:
        return passes(longest, chunk)
    if chunk is not None and chunk < longest:
        raise ValueError(
            f"This model turns all places of a text of more than {bound} tokens otherwise than "
            f"those of a shorter one, so that {longest} tokens must be read in one pass; got "
            f"chunk={chunk}. Leave `chunk` away."
        )
    return [(0, bucket(longest))] if chunk is None else passes(longest, chunk)


def check_growth(config: Any, before: Lengths, after: Lengths) -> None:
    """Raises `ValueError` where a row grows longer than the keys in its cache were turned for.

    Arguments:
        config: of the decoder.
        before: how many tokens of each row are read, or about to be.
        after: how many will have been read in the end.
    """
    bounds = [each.original_length for each in by_length(config) if isinstance(each, LongRoPE)]
    for bound in bounds:
        crossing = (before <= bound) & (after > bound)
        if crossing.any():
            row = int(np.argmax(crossing))
            raise ValueError(
                f"Row {row} has {before[row]} tokens and would grow to {after[row]}. This model "
                f"turns all places of a text of more than {bound} tokens otherwise than those of "
                f"a shorter one: stop at {bound}, and begin again with the whole text as the "
                "prompt."
            )


def by_length(config: Any) -> list[Any]:
    """The scalings in a config whose frequencies depend on the length of the text."""
    return [each for each in _scalings(config) if each.by_length]


def _scalings(config: Any) -> Iterator[Scaling]:
    """Every scaling of rotary positions in a config, of blocks that are one and the same once."""
    seen: set[int] = set()
    left = [config]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Scaling):
            yield value
        elif isinstance(value, Config):
            left += [getattr(value, field.name) for field in dataclasses.fields(value)]
        elif isinstance(value, tuple):
            left += value
