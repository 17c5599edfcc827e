"""One step of a beam search: which of all continuations live on, and which are complete."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from eqxformer.generation._selection import largest
from eqxformer.generation.following import take_rows
from eqxformer.generation.processors import Seen
from eqxformer.generation.samplers import Sampler, wide
from eqxformer.generation.stops import Stop

EARLY = {False: 0, True: 1, "never": 2}  # the values of `early_stopping`, as numbers of a program


class Settings(eqx.Module):
    """How beams are ranked, and when a row is done; numbers are arrays, shapes are not."""

    length_penalty: Float[Array, ""]
    diversity_penalty: Float[Array, ""]
    early: Int[Array, ""]
    most: Int[Array, ""]  # new tokens
    groups: int = eqx.field(static=True)
    candidates: int = eqx.field(static=True)  # for each beam

    def ranked(self, scores: Float[Array, "*any"], length: Array) -> Float[Array, "*any"]:
        """Sums of log-probabilities, divided by a power of the length."""
        power = self.length_penalty.astype(scores.dtype)
        return scores / length.astype(scores.dtype) ** power


class Finished(eqx.Module):
    """The best complete texts of each row so far; one that is not there has the score `-inf`."""

    tokens: Int[Array, "rows beams slots"]
    length: Int[Array, "rows beams"]
    scores: Float[Array, "rows beams"]

    @staticmethod
    def none(seen: Seen, scores: Float[Array, "rows beams"]) -> "Finished":
        """No text yet of as many as there are scores."""
        (rows, beams), slots = scores.shape, seen.tokens.shape[1]
        missing = jnp.full_like(scores, -jnp.inf)
        return Finished(
            jnp.zeros((rows, beams, slots), jnp.int32), jnp.zeros((rows, beams), jnp.int32), missing
        )


class Running(NamedTuple):
    """The beams that live on: which beam each goes on from, with which token, and the best texts.

    `done` is of rows and groups; a group of a row that is done no longer changes.
    """

    beams: Int[Array, "rows beams"]
    tokens: Int[Array, "rows beams"]
    scores: Float[Array, "rows beams"]
    finished: Finished
    done: Bool[Array, "rows groups"]


class Candidates(NamedTuple):
    """The best continuations of a group of beams, the best of them first."""

    beams: Int[Array, "rows candidates"]
    tokens: Int[Array, "rows candidates"]
    scores: Float[Array, "rows candidates"]
    seen: Seen
    ends: Bool[Array, "rows candidates"]


def totals(
    sampler: Sampler,
    logits: Float[Array, "rows beams vocab"],
    seen: Seen,
    scores: Float[Array, "rows beams"],
) -> tuple[Float[Array, "rows beams vocab"], Bool[Array, "rows beams"]]:
    """The score of every continuation, and the beams of which one is NaN.

    Processors see log-probabilities, and what they make of them is added up as it is.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    changed = sampler.process(jax.nn.log_softmax(wide(flat), axis=-1), seen)
    before = jnp.broadcast_to(scores[..., None], logits.shape)
    total = jnp.where(jnp.isneginf(before), -jnp.inf, changed.reshape(logits.shape) + before)
    wrong = jnp.isnan(total)
    return jnp.where(wrong, -jnp.inf, total), wrong.any(-1)


def advance(
    settings: Settings,
    stop: Stop,
    seen: Seen,
    total: Float[Array, "rows beams vocab"],
    finished: Finished,
    done: Bool[Array, "rows groups"],
) -> Running:
    """A step of all groups, one after the other; a later one avoids the tokens of the earlier."""
    rows, beams, vocab = total.shape
    size = beams // settings.groups
    taken, found = jnp.zeros((rows, vocab), total.dtype), []
    for group in range(settings.groups):
        part = slice(group * size, (group + 1) * size)
        values = total[:, part]
        if group:
            lost = settings.diversity_penalty.astype(taken.dtype) * taken
            values = values - jnp.broadcast_to(lost[:, None], values.shape)
        candidates = _candidates(settings, stop, seen, values, beams, part.start)
        before = jax.tree.map(lambda x, part=part: x[:, part], finished)
        found.append(_group(settings, candidates, before, done[:, group]))
        counts = (found[-1].scores > -jnp.inf) & ~done[:, group, None]
        at = jnp.arange(rows)[:, None], found[-1].tokens
        taken = taken.at[at].add(counts.astype(taken.dtype))
    return jax.tree.map(lambda *each: jnp.concatenate(each, axis=1), *found)


def _candidates(
    settings: Settings, stop: Stop, seen: Seen, values: Array, beams: int, first: int
) -> Candidates:
    """The best continuations of the beams from `first` on, and which of them are complete."""
    rows, size, vocab = values.shape
    count = min(settings.candidates * size, size * vocab)
    scores, places = largest(values.reshape(rows, size * vocab), count)
    parents, tokens = first + places // vocab, places % vocab
    flat = flat_beams(parents, beams)
    later = jax.tree.map(lambda x: x[flat], seen).add(tokens.reshape(-1))
    ends = take_rows(stop, flat).after(tokens.reshape(-1)).reached(later)
    return Candidates(parents, tokens, scores, later, ends.reshape(rows, count))


def _group(settings: Settings, found: Candidates, finished: Finished, done: Array) -> Running:
    """The best candidates that are not complete live on; complete ones may be among the best."""
    count, size = found.scores.shape[1], finished.scores.shape[1]
    step = found.seen.new[0]  # the same in all rows
    scores, order = jax.lax.top_k(jnp.where(found.ends, -jnp.inf, found.scores), size)
    # Only the first of the candidates count as complete; the rest stands in for those that end.
    complete = (found.ends | (step >= settings.most)) & (jnp.arange(count) < size)[None]
    complete = complete & ~done[:, None]
    ranked = jnp.where(complete, settings.ranked(found.scores, step), -jnp.inf)
    finished = _merged(finished, found, ranked)
    beams, tokens = (jnp.take_along_axis(x, order, axis=1) for x in (found.beams, found.tokens))
    done = done | _is_done(settings, step, scores[:, 0], finished.scores)
    return Running(beams, tokens, scores, finished, done[:, None])


def _merged(finished: Finished, found: Candidates, ranked: Array) -> Finished:
    """The best of the texts there are and of those that have been completed now."""
    rows, size = finished.scores.shape
    new = Finished(
        found.seen.tokens.reshape(*ranked.shape, -1),
        found.seen.length.reshape(ranked.shape),
        ranked,
    )
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), finished, new)
    _, order = jax.lax.top_k(both.scores, size)
    return jax.tree.map(lambda x: x[jnp.arange(rows)[:, None], order], both)


def _is_done(settings: Settings, step: Array, best: Array, scores: Array) -> Array:
    """Whether no beam can, or shall, still become one of the best texts."""
    worst = scores.min(-1)
    full = worst > -jnp.inf
    hopeful = (settings.early == EARLY["never"]) & (settings.length_penalty > 0)
    possible = settings.ranked(best, jnp.where(hopeful, settings.most, step))
    enough = full & ((settings.early == EARLY[True]) | (possible <= worst))
    return enough | jnp.isneginf(best)


def flat_beams(beams: Int[Array, "rows some"], count: int) -> Int[Array, " flat"]:
    """Where these of the `count` beams of each row are, counted over all rows."""
    rows = jnp.arange(beams.shape[0], dtype=beams.dtype)[:, None]
    return (rows * count + beams).reshape(-1)
