"""Beam search: the few best texts of each row, followed side by side in one compiled loop."""

import math
import operator
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from eqxformer.constraints import fetched
from eqxformer.generation._beam_caches import followed, parted_source, seated, spread
from eqxformer.generation._beams import (
    EARLY,
    Finished,
    Running,
    Settings,
    advance,
    flat_beams,
    totals,
)
from eqxformer.generation.decode import Choices, check_choices
from eqxformer.generation.following import joined, parted, take_rows
from eqxformer.generation.generate import begun, filler
from eqxformer.generation.prefill import Frames, Start, as_given
from eqxformer.generation.processors import Processor, Seen, wide
from eqxformer.generation.prompts import Prompts, bucket, slots_for
from eqxformer.generation.samplers import Greedy, nothing_to_choose
from eqxformer.generation.state import GenerationState, Model
from eqxformer.generation.stops import AnyStop, Stop, StopIds
from eqxformer.layers.beam_cache import Seating
from eqxformer.layers.masks import Explicit
from eqxformer.models.decoder_lm import ModelCache
from eqxformer.models.encoder_decoder import EncoderDecoder


class Hypotheses(NamedTuple):
    """The best texts of every row, the best of them first.

    Arguments:
        tokens: the new tokens, a stop id at their end among them. For prompts given as lists, a
            list of lists per row; else an array, filled up as that of `generate`.
        scores: the sum of each text's log-probabilities, divided by
            `number of new tokens ** length_penalty`; lists or an array, likewise.

    Example:
        >>> import eqxformer as ef
        >>> found = ef.Hypotheses(tokens=[[[5, 6], [5]]], scores=[[-0.5, -1.25]])
        >>> [(texts[0], scores[0]) for texts, scores in zip(*found)]
        [([5, 6], -0.5)]
    """

    tokens: list[list[list[int]]] | Int[Array, "rows best new"]
    scores: list[list[float]] | Float[Array, "rows best"]


class Room(NamedTuple):
    """How many slots a row's prompt has, and each beam."""

    prompt: int
    new: int


class Carry(NamedTuple):
    """What a step of the loop hands to the next."""

    step: Array
    seen: Seen
    scores: Array
    finished: Finished
    done: Array
    stuck: Array
    memories: Any
    owners: Array
    cache: ModelCache


def beam_search(
    model: Model,
    prompts: Prompts | Frames,
    *,
    beams: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    groups: int = 1,
    diversity_penalty: float = 0.0,
    best: int = 1,
    processor: Processor | None = None,
    valid: Bool[Array, "rows seq"] | None = None,
    start: Start | None = None,
    stop: int | tuple[int, ...] | Stop | None = (),
    slots: int | None = None,
    chunk: int | None = None,
) -> Hypotheses:
    """The texts with the largest `log p(text) / length ** length_penalty` that a beam search finds.

    A step continues every beam of a row with every token. Of the best `2 * beams` continuations
    (`(ids + 1) * beams` for several stop ids), those that do not end are the next beams, and those
    that end are complete texts if they are among the best `beams`. At `max_new_tokens` all are
    complete. Prompts are read once a row; keys and values are written once and never moved, those
    of a prompt and of a source being shared by all beams of a row. With one beam this is greedy
    generation. Compiled is what `generate` compiles; other penalties, stop ids, `early_stopping`
    and, up to a next step of size, prompts and `max_new_tokens` compile nothing anew.

    Arguments:
        model, prompts, valid, start, stop, slots, chunk: as in `generate`.
        beams: how many continuations of a row are followed.
        max_new_tokens: how many tokens a text has at the most.
        length_penalty: the power of the length; above 0, longer texts are favoured.
        early_stopping: when a row with `beams` complete texts is done. True: at once. False: when
            the best beam, ranked as if it ended now, is no better than the worst of them. "never":
            when it could not be better at any length.
        groups: parts of the beams, each of which is searched for itself, one after the other.
        diversity_penalty: what a continuation loses for each beam of an earlier group that has
            taken the same token in this step. It stays in the score.
        best: how many texts of a row are given back, at most `beams`.
        processor: changes the log-probabilities of each beam, given the beam's own tokens. They are
            not normalised again.

    Raises `ValueError` as `generate` does, and for options that do not fit together.

    Source: Graves 2012, Sequence Transduction with Recurrent Neural Networks (arXiv 1211.3711); for
    groups, Vijayakumar et al. 2018, Diverse Beam Search (arXiv 1610.02424).

    Example:
        >>> import eqxformer as ef, jax
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=32)
        >>> model = config.build(key=jax.random.key(0))
        >>> found = ef.beam_search(model, [[1, 2, 3], [4]], beams=4, best=2, max_new_tokens=5)
        >>> [[len(text) for text in row] for row in found.tokens]
        [[5, 5], [5, 5]]
        >>> found.scores[0][0] >= found.scores[0][1]
        True
    """
    given = as_given(model, prompts, valid, start)
    max_new_tokens = operator.index(max_new_tokens)
    choices = _choices(model, given.rows.count, max_new_tokens, processor, stop)
    _check(beams, groups, best, diversity_penalty, length_penalty, early_stopping)
    settings = Settings(
        length_penalty=jnp.asarray(length_penalty, jnp.float32),
        diversity_penalty=jnp.asarray(diversity_penalty, jnp.float32),
        early=jnp.asarray(EARLY[early_stopping], jnp.int32),
        most=jnp.asarray(max_new_tokens, jnp.int32),
        groups=groups,
        candidates=1 if beams == 1 else max(2, 1 + _stop_ids(choices.stop)),
    )
    room = Room(_rounded(given.rows.longest) if slots is None else slots, _rounded(max_new_tokens))
    slots = room.prompt + room.new if slots is None else slots
    state = begun(model, given, max_new_tokens, slots, chunk)
    finished, stuck = _search((model, choices, settings, state), beams, room)
    shape = (best, None if isinstance(prompts, (list, tuple)) else max_new_tokens)
    return _read_out(finished, stuck, given.rows.lengths, shape, filler(choices.stop))


def _choices(
    model: Model,
    rows: int,
    new: int,
    processor: Any,
    stop: int | tuple[int, ...] | Stop | None,
) -> Choices:
    """The processors as a sampler that draws nothing, and the stop, checked against the model."""
    if processor is not None and not isinstance(processor, Processor):
        raise ValueError(
            "`processor` must be a processor, such as `NoRepeatNGram(3)`, or None: a beam search "
            f"chooses by itself; got {type(processor).__name__}."
        )
    if new < 1:
        raise ValueError(f"`max_new_tokens` must be positive; got {new}.")
    sampler = Greedy() if processor is None else processor | Greedy()
    return check_choices(model, rows, new, sampler, stop, None)


def _check(
    beams: int, groups: int, best: int, diversity: float, length: float, early: bool | str
) -> None:
    """Refuses numbers that are out of range, and options that do not fit together."""
    for name, count in {"beams": beams, "groups": groups, "best": best}.items():
        if count < 1:
            raise ValueError(f"`{name}` must be positive; got {count}.")
    if best > beams:
        raise ValueError(f"`best` must be at most `beams`; got best={best}, beams={beams}.")
    if beams % groups:
        raise ValueError(f"`groups` must divide `beams`; got groups={groups}, beams={beams}.")
    if not (math.isfinite(diversity) and (diversity > 0 if groups > 1 else diversity == 0)):
        raise ValueError(
            "`diversity_penalty` must be above 0 where there are several groups, which would all "
            f"be the same without it, and 0 otherwise; got {diversity} with groups={groups}."
        )
    if not math.isfinite(length):
        raise ValueError(f"`length_penalty` must be finite; got {length}.")
    if early not in EARLY:
        raise ValueError(f'`early_stopping` must be True, False or "never"; got {early!r}.')


def _stop_ids(stop: Stop) -> int:
    """How many ids end a text."""
    parts = stop.parts if isinstance(stop, AnyStop) else (stop,)
    return sum(part.ids.array.size for part in parts if isinstance(part, StopIds))


def _rounded(count: int) -> int:
    """A number of slots that serves many counts, at most a power of two."""
    return min(bucket(count), slots_for(count))


@eqx.filter_jit
def _search(
    given: tuple[Model, Choices, Settings, GenerationState], beams: int, room: Room
) -> tuple[Finished, Array]:
    """The best texts of every row, and the rows whose numbers are not to be trusted."""
    model, choices, settings, state = given
    carry, source, rest = _begin(choices, settings, state, beams, room)
    padding = None if state.source is None else state.source.valid
    first = state.logits[:, None]  # pyright: ignore[reportOptionalSubscript]
    logits = jnp.broadcast_to(first, (state.rows, beams, first.shape[-1]))

    def step(carry: Carry) -> Carry:
        seating = Seating(carry.owners, carry.step - 1, state.seen.prompt)
        cache = seated(eqx.combine(carry.cache, source), seating)
        newest = carry.seen.newest().reshape(state.rows, beams, 1)
        hidden, cache = _read(model, newest, cache, padding)
        _, cache = parted_source(cache)
        carry = carry._replace(cache=cache)
        return _choose(settings, rest, model.logits(hidden[:, :, 0]), carry)

    def going(carry: Carry) -> Array:
        return (carry.step < settings.most) & ~(carry.done.all(-1) | carry.stuck).all()

    carry = jax.lax.while_loop(going, step, _choose(settings, rest, logits, carry))
    return carry.finished, carry.stuck


def _begin(
    choices: Choices, settings: Settings, state: GenerationState, beams: int, room: Room
) -> tuple[Carry, Any, Any]:
    """Before the first step: one beam a group that counts. Beside it, what no step changes."""
    rows = state.rows
    padding = None if state.source is None else state.source.valid
    cache = spread(state.cache, padding, beams=beams, shared=room.prompt, steps=room.new)
    source, cache = parted_source(cache)
    seen = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), state.seen)
    followers = choices.sampler.begin(rows * beams), choices.stop.begin(rows * beams)
    memories, rest = parted(followers)
    first = jnp.arange(beams) % (beams // settings.groups) == 0
    kind = wide(state.logits).dtype  # pyright: ignore[reportArgumentType]
    scores = jnp.where(first, jnp.zeros((), kind), -jnp.inf)
    scores = jnp.broadcast_to(scores, (rows, beams))
    carry = Carry(
        step=jnp.asarray(0, jnp.int32),
        seen=seen,
        scores=scores,
        finished=Finished.none(state.seen, scores),
        done=jnp.zeros((rows, settings.groups), bool),
        stuck=jnp.zeros(rows, bool),
        memories=memories,
        owners=jnp.zeros((rows, beams, room.new), jnp.int32),
        cache=cache,
    )
    return carry, source, rest


def _read(
    model: Model, tokens: Array, cache: ModelCache, padding: Array | None
) -> tuple[Array, ModelCache]:
    """The hidden states of every beam's newest token, and the cache with it."""
    if padding is None or not isinstance(model, EncoderDecoder):
        return model.read(tokens, cache)
    return model.read(tokens, cache, cross_mask=Explicit(padding[:, None, None]))


def _choose(settings: Settings, rest: Any, logits: Array, carry: Carry) -> Carry:
    """The beams after one more token each, and the cache by which they find what they come from."""
    beams = logits.shape[1]
    sampler, stop = joined(carry.memories, rest)
    total, wrong = totals(sampler, logits, carry.seen, carry.scores)
    done = jnp.repeat(carry.done, beams // settings.groups, axis=1)
    stuck = carry.stuck | (wrong & ~done).any(-1)
    new = advance(settings, stop, carry.seen, total, carry.finished, carry.done)
    flat, tokens = flat_beams(new.beams, beams), new.tokens.reshape(-1)
    followers = tuple(take_rows(each, flat).after(tokens) for each in (sampler, stop))
    return Carry(
        step=carry.step + 1,
        seen=jax.tree.map(lambda x: x[flat], carry.seen).add(tokens),
        scores=new.scores,
        finished=new.finished,
        done=new.done,
        stuck=stuck,
        memories=parted(followers)[0],
        owners=_owners(carry, new),
        cache=followed(carry.cache, new.beams),
    )


def _owners(carry: Carry, new: Running) -> Array:
    """Whose tokens each beam goes on from, its own newest one included."""
    rows, beams, _ = carry.owners.shape
    owners = carry.owners[jnp.arange(rows)[:, None], new.beams]
    own = jnp.broadcast_to(jnp.arange(beams, dtype=jnp.int32)[:, None], (rows, beams, 1))
    return jax.lax.dynamic_update_slice_in_dim(owners, own, carry.step, axis=2)


def _read_out(
    finished: Finished,
    stuck: Array,
    prompts: np.ndarray,
    shape: tuple[int, int | None],
    fill: int,
) -> Hypotheses:
    """The best of what has been found; raises for a row in which there is nothing."""
    best, new = shape
    scores, length = fetched(finished.scores), fetched(finished.length)
    nothing = np.flatnonzero(fetched(stuck) | np.isneginf(scores.max(-1)))
    if nothing.size:
        raise ValueError(nothing_to_choose(int(nothing[0])))
    order = np.argsort(-scores, axis=-1, kind="stable")[:, :best]
    ranked = np.take_along_axis(scores, order, axis=1)
    every = fetched(finished.tokens)
    texts = [
        [
            every[row, i, begin : length[row, i]].tolist()
            for i in order[row]
            if scores[row, i] > -np.inf
        ]
        for row, begin in enumerate(prompts)
    ]
    if new is None:
        return Hypotheses(texts, [row[row > -np.inf].tolist() for row in ranked])
    filled = np.full((len(texts), best, new), fill, np.int32)
    for row, found in enumerate(texts):
        for place, text in enumerate(found):
            filled[row, place, : len(text)] = text
    return Hypotheses(jnp.asarray(filled), jnp.asarray(ranked))
