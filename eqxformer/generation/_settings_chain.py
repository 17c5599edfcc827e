"""The processors that the keys of a `generation_config.json` ask for, in their order."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from eqxformer.checkpoints.settings import Settings
from eqxformer.generation.constraints import (
    BadWords,
    Force,
    MinLength,
    MinNewTokens,
    NoRepeatNGram,
    Suppress,
    SuppressAtBegin,
)
from eqxformer.generation.penalties import ExponentialLengthPenalty, LogitBias, RepetitionPenalty
from eqxformer.generation.processors import Chain, Processor, Seen, history
from eqxformer.generation.warpers import (
    Epsilon,
    Eta,
    MinP,
    Temperature,
    TopH,
    TopK,
    TopP,
    Typical,
)

_TOP_K = 50  # where nothing is said
_TOP_H = 100  # tokens whose entropy counts

Ids = tuple[int, ...]


class ByPrompt(Processor):
    """One processor for rows whose prompt is one token, as a target's start, another for the rest.

    So they are told apart by transformers, which forces the first token of a target alone.
    """

    single: Processor
    longer: Processor

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        single = (history(seen, self).prompt == 1)[:, None]
        return jnp.where(single, self.single(logits, seen), self.longer(logits, seen))


def processors_of(said: Settings, stop: Ids) -> tuple[Processor, ...]:
    """What changes logits whether a token is drawn or not."""
    forced = _forced(said)
    least = said.size("min_length", 0, least=0)
    if said.get("min_new_tokens", None) is not None:
        least = 0  # the other one counts then, and this one not at all
    parts = [
        _bias(said.get("sequence_bias", None), said),
        _unless(1.0, said.number("repetition_penalty", 1.0), RepetitionPenalty),
        _unless(0, said.size("no_repeat_ngram_size", 0, least=0), NoRepeatNGram),
        _bad_words(said, stop),
        _least(MinLength, least, stop),
        _least(MinNewTokens, said.size("min_new_tokens", 0, least=0), stop),
        ByPrompt(Force(forced), Chain()) if forced else None,
        _of_ids(said, "forced_eos_token_id", lambda ids: Force({-1: ids})),
        _decay(said, stop),
        _of_ids(said, "suppress_tokens", Suppress),
        _of_ids(said, "begin_suppress_tokens", lambda ids: _at_begin(ids, forced)),
    ]
    return tuple(part for part in parts if part is not None)


def warpers_of(said: Settings) -> tuple[Processor, ...]:
    """What leaves out the unlikely tokens before one is drawn; nothing if none is."""
    if not said.flag("do_sample", False):
        return ()
    top_h = said.number("top_h", None)
    parts = [
        _unless(1.0, said.number("temperature", 1.0), Temperature),
        None if top_h is None else TopK(_TOP_H) | TopH(top_h),
        _unless(0, said.size("top_k", _TOP_K, least=0), TopK),
        _below_one(said.number("top_p", 1.0), TopP),
        _unless(None, said.number("min_p", None), MinP),
        _below_one(said.number("typical_p", 1.0), Typical),
        _cutoff(said.number("epsilon_cutoff", 0.0), Epsilon),
        _cutoff(said.number("eta_cutoff", 0.0), Eta),
    ]
    return tuple(part for part in parts if part is not None)


def as_ids(said: Settings, key: str) -> Ids:
    """The value of a key that is an id or a list of them; none if it is absent."""
    value = said.get(key, ())
    ids = list(value) if isinstance(value, list | tuple) else [value]
    if not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in ids):
        raise said.wrong(key, "an id or a list of them", value)
    return tuple(ids)


def _unless(neutral: Any, value: Any, make: Callable[[Any], Processor]) -> Processor | None:
    return None if value == neutral else make(value)


def _below_one(value: float, make: Callable[[float], Processor]) -> Processor | None:
    return make(value) if value < 1 else None


def _cutoff(value: float, make: Callable[[float], Processor]) -> Processor | None:
    return make(value) if 0 < value < 1 else None


def _least(make: Callable[..., Processor], count: int, stop: Ids) -> Processor | None:
    return make(count, stop=stop) if count and stop else None


def _of_ids(said: Settings, key: str, make: Callable[[Ids], Processor]) -> Processor | None:
    ids = as_ids(said, key)
    return make(ids) if ids else None


def _bias(value: Any, said: Settings) -> Processor | None:
    """`sequence_bias`: in a file, a list of pairs, since its keys are lists."""
    if value is None:
        return None
    pairs = value.items() if isinstance(value, Mapping) else value
    try:
        biases: dict[int | tuple[int, ...], float] = {
            tuple(map(int, phrase)): float(bias) for phrase, bias in pairs
        }
    except (TypeError, ValueError):
        raise said.wrong("sequence_bias", "a list of [[ids], bias]", value) from None
    return LogitBias(biases) if biases else None


def _bad_words(said: Settings, stop: Ids) -> Processor | None:
    """`bad_words_ids`, but for the ids that end a row, which stay allowed."""
    words = said.items("bad_words_ids", ())
    if not all(isinstance(word, list | tuple) for word in words):
        raise said.wrong("bad_words_ids", "a list of lists of ids", words)
    words = [word for word in map(tuple, words) if word not in {(id,) for id in stop}]
    return BadWords(words) if words else None


def _forced(said: Settings) -> dict[int, int]:
    """The token of each step that is forced behind a start of one token."""
    first = said.size("forced_bos_token_id", None, least=0)
    if first is None and said.flag("force_bos_token_to_be_generated", False):
        first = said.size("bos_token_id", least=0)
    forced = {} if first is None else {0: first}
    for pair in said.items("forced_decoder_ids", ()):
        place, id = pair if isinstance(pair, list | tuple) and len(pair) == 2 else (None, None)
        if not isinstance(place, int) or place < 1:
            raise said.wrong("forced_decoder_ids", "a list of [place from 1, id]", pair)
        if not isinstance(id, int):
            raise NotImplementedError(
                f"{said.where}: `forced_decoder_ids` leaves the token at place {place} to a guess "
                "of the language; give the language's token in `start`, and take the key out."
            )
        forced[place - 1] = id
    return forced


def _decay(said: Settings, stop: Ids) -> Processor | None:
    value = said.items("exponential_decay_length_penalty", ())
    if not value:
        return None
    if len(value) != 2:
        raise said.wrong("exponential_decay_length_penalty", "[begin, factor]", value)
    return ExponentialLengthPenalty(*value, stop=stop)


def _at_begin(ids: Ids, forced: dict[int, int]) -> Processor:
    free = SuppressAtBegin(ids)
    if not forced:
        return free
    return ByPrompt(SuppressAtBegin(ids, step=1 + max(forced)), free)
