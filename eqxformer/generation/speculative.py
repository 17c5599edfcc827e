"""Speculative decoding: several proposed tokens are read in one pass, and those that fit are kept.

    text              It is what it
    proposed                          was  and  will
    the model says                    is   ·    ·         rejected at once: one new token, `is`
    proposed                               what it   is
    the model says                         what it   was  kept: `what it`; and `was` is new

A pass over a few tokens takes about as long as one over a single token, since the weights have to
be fetched for either. Every pass makes at least one token, and the text is what it would have been.
"""

import dataclasses
import operator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from eqxformer.constraints import fetched
from eqxformer.generation.decode import Choices, check_choices, keys_of
from eqxformer.generation.drafts import (
    KEEPING,
    REPLACING,
    Draft,
    DraftModel,
    Keys,
    Proposal,
    as_draft,
    keys_for,
)
from eqxformer.generation.following import joined, parted, where_rows
from eqxformer.generation.generate import as_asked, begun
from eqxformer.generation.prefill import Frames, Start, as_given
from eqxformer.generation.processors import Processor, Seen, wide
from eqxformer.generation.prompts import Prompts
from eqxformer.generation.samplers import Greedy, Sampler, draw, nothing_to_choose
from eqxformer.generation.state import GenerationState, Model, decoder_config, row_keys
from eqxformer.generation.stops import Stop
from eqxformer.layers.masks import Padding


@dataclasses.dataclass(frozen=True)
class Speculated:
    """What `generate_speculative` has made, and whether the proposals were worth it.

    Arguments:
        tokens: the new tokens, as `generate` gives them.
        proposed: how many tokens were proposed in each row.
        accepted: how many of them were kept.
        passes: how often the model has read, after the prompts, for all rows together.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> made = ef.Speculated([[5, 6, 7]], np.array([4]), np.array([2]), passes=1)
        >>> made.acceptance
        0.5
    """

    tokens: Int[Array, "rows new"] | list[list[int]]
    proposed: Int[np.ndarray, " rows"]
    accepted: Int[np.ndarray, " rows"]
    passes: int

    @property
    def acceptance(self) -> float:
        """The share of the proposed tokens that was kept; 0 if there were none."""
        return float(self.accepted.sum()) / max(int(self.proposed.sum()), 1)


class Going(NamedTuple):
    """What every token changes."""

    seen: Seen
    memories: Any
    finished: Bool[Array, " rows"]
    stuck: Bool[Array, " rows"]
    accepted: Int[Array, " rows"]

    @property
    def done(self) -> Bool[Array, " rows"]:
        """Which rows make no more tokens."""
        return self.finished | self.stuck | (self.seen.length >= self.seen.limit)


class Counts(NamedTuple):
    """Which rows had no token to choose, and what the proposals came to."""

    stuck: Bool[Array, " rows"]
    proposed: Int[Array, " rows"]
    accepted: Int[Array, " rows"]
    passes: Int[Array, ""]


class Carry(NamedTuple):
    """What a pass of the loop hands to the next."""

    going: Going
    cache: Any
    drafted: Any
    proposed: Int[Array, " rows"]
    passes: Int[Array, ""]


def generate_speculative(
    model: Model,
    prompts: Prompts | Frames,
    *,
    draft: Draft | Model,
    max_new_tokens: int,
    sampler: Sampler | Processor = Greedy(),
    valid: Bool[Array, "rows seq"] | None = None,
    start: Start | None = None,
    stop: int | tuple[int, ...] | Stop | None = (),
    slots: int | None = None,
    chunk: int | None = None,
    key: Key[Array, "*rows"] | None = None,
) -> Speculated:
    """What `generate` makes, in fewer passes of the model, by checking the proposals of a draft.

    Leviathan et al. 2023. Greedy text is that of `generate`, and so is text drawn with
    `PromptLookup`, for the same key. With a `DraftModel`, drawn text has the same distribution: a
    proposed token is kept with probability `min(1, p / q)`, where the model gives it `p` and the
    draft `q`, and otherwise another is drawn in proportion to `max(p - q, 0)`. Sums are rounded
    otherwise in a pass over several tokens, which may decide between tokens that are as good as
    equal; and with `DynamicNTK`, beyond its `original_length`, the tokens of a pass are turned as
    those of the text with all that was proposed.

    Rows keep as many tokens as fit each of them. What is rejected is taken back from the cache, for
    which windowed layers hold `ahead` tokens more. Compiled is one loop for each draft.

    Arguments:
        draft: `PromptLookup(...)`, `DraftModel(...)`, a smaller model, or a draft of your own.

    Other arguments and errors are as in `generate`. Raises `ValueError` too for a draft model with
    another vocabulary or too few positions, and `NotImplementedError` for a block of your own whose
    cache cannot go back.

    Example:
        >>> import eqxformer as ef, jax
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=32)
        >>> model = config.build(key=jax.random.key(0))
        >>> made = ef.generate_speculative(
        ...     model, [[1, 2, 3]], draft=ef.PromptLookup(ahead=4), max_new_tokens=8
        ... )
        >>> len(made.tokens[0]), 0 <= made.acceptance <= 1
        (8, True)
    """
    given, draft = as_given(model, prompts, valid, start), as_draft(draft)
    max_new_tokens = operator.index(max_new_tokens)
    choices = check_choices(model, given.rows.count, max_new_tokens, sampler, stop, key)
    state = begun(model, given, max_new_tokens, slots, chunk, draft.ahead)
    memory = draft.begin(model, given, state.slots, max_new_tokens, chunk)
    if type(draft).begin is not DraftModel.begin:  # whose cache is new, and large
        memory = jax.tree.map(jnp.copy, memory)  # the loop writes over it
    if max_new_tokens == 0:
        none = np.zeros(state.rows, np.int32)
        return Speculated(as_asked(prompts, state.new_tokens(), 0, choices.stop), none, none, 0)
    made, _, counts = _loop((model, draft, choices), state, memory)
    if (without := np.flatnonzero(fetched(counts.stuck))).size:
        raise ValueError(nothing_to_choose(int(without[0])))
    return Speculated(
        as_asked(prompts, made.new_tokens(), max_new_tokens, choices.stop),
        fetched(counts.proposed),
        fetched(counts.accepted),
        int(fetched(counts.passes)),
    )


@eqx.filter_jit(donate="all-except-first")
def _loop(
    given: tuple[Model, Draft, Choices], state: GenerationState, drafted: Any
) -> tuple[GenerationState, Any, Counts]:
    model, draft, choices = given
    rows, keys = state.rows, row_keys(choices.key, state.rows)
    memories, rest = parted((choices.sampler.begin(rows), choices.stop.begin(rows)))

    def step(carry: Carry) -> Carry:
        done, seen = carry.going.done, carry.going.seen
        room = jnp.where(done, 0, jnp.minimum(seen.limit - seen.length - 1, draft.ahead))
        sampler, _ = joined(carry.going.memories, rest)
        proposal, drafted = draft.propose(carry.drafted, seen, room, sampler, keys)
        proposal = _trusted(proposal, room, decoder_config(model).vocab)
        places = jnp.arange(draft.ahead + 1, dtype=jnp.int32)[None]
        given = places <= proposal.count[:, None]
        hidden, cache = model.read(
            jnp.concatenate([seen.newest()[:, None], proposal.tokens], axis=1),
            carry.cache,
            mask=Padding(given & ~done[:, None]),
            source_mask=state.source,
        )
        going = _keep(carry.going, rest, model.logits(hidden), proposal, keys)
        read = going.seen.length - 1  # the newest token is left for the next pass
        counts = (carry.proposed + proposal.count, carry.passes + 1)
        return Carry(going, cache.back_to(read), draft.back_to(drafted, read), *counts)

    none = jnp.zeros(rows, jnp.int32)
    going = Going(state.seen, memories, state.finished, jnp.zeros(rows, bool), none)
    nothing = Proposal(jnp.zeros((rows, 1), jnp.int32), none, None)
    going = _keep(going, rest, state.logits[:, None], nothing, keys)  # pyright: ignore[reportOptionalSubscript]
    carry = Carry(going, state.cache, drafted, none, jnp.asarray(0, jnp.int32))
    carry = jax.lax.while_loop(lambda carry: ~carry.going.done.all(), step, carry)
    going = carry.going
    made = GenerationState(going.seen, carry.cache, None, going.finished, state.source)
    return made, carry.drafted, Counts(going.stuck, carry.proposed, going.accepted, carry.passes)


def _trusted(proposal: Proposal, room: Int[Array, " rows"], vocab: int) -> Proposal:
    """The proposal up to the first id that there is not, and to what there is room for."""
    tokens = proposal.tokens
    places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    known = (tokens >= 0) & (tokens < vocab) & (places < proposal.count[:, None])
    count = jnp.cumprod(known, axis=1, dtype=jnp.int32).sum(1, dtype=jnp.int32)
    return Proposal(jnp.where(known, tokens, 0), jnp.minimum(count, room), proposal.scores)


def _keep(
    going: Going,
    rest: Any,
    logits: Float[Array, "rows places vocab"],
    proposal: Proposal,
    keys: Keys | None,
) -> Going:
    """The rows with what the model chooses, place by place, for as long as that was proposed."""

    def step(carry: tuple[Array, Array, Going]) -> tuple[Array, Array, Going]:
        place, live, going = carry
        sampler, stop = joined(going.memories, rest)
        there = jax.lax.dynamic_index_in_dim(logits, place, 1, keepdims=False)
        token, agreed = _choose(sampler, there, going.seen, proposal, place, keys)
        stuck = going.stuck | (live & (token < 0))
        adds = live & ~stuck
        seen = going.seen.add(token, where=adds)
        sampler, stop = sampler.after(token), stop.after(token)
        finished = going.finished | (adds & stop.reached(seen))
        memories = where_rows(adds, parted((sampler, stop))[0], going.memories)
        kept = adds & agreed & (place < proposal.count)
        accepted = going.accepted + kept.astype(jnp.int32)
        going = Going(seen, memories, finished, stuck, accepted)
        return place + 1, kept & ~going.done, going

    def more(carry: tuple[Array, Array, Going]) -> Array:
        return (carry[0] < logits.shape[1]) & carry[1].any()

    return jax.lax.while_loop(more, step, (jnp.asarray(0, jnp.int32), ~going.done, going))[2]


def _choose(
    sampler: Sampler,
    logits: Float[Array, "rows vocab"],
    seen: Seen,
    proposal: Proposal,
    place: Int[Array, ""],
    keys: Keys | None,
) -> tuple[Int[Array, " rows"], Bool[Array, " rows"]]:
    """The model's token at a place of the proposal, and whether it is the proposed one."""
    at = jnp.minimum(place, proposal.tokens.shape[1] - 1)
    offer = jax.lax.dynamic_index_in_dim(proposal.tokens, at, 1, keepdims=False)
    if proposal.scores is None or keys is None:
        token = sampler(logits, keys_of(keys, seen.length), seen)
        return token, token == offer
    scores = jax.lax.dynamic_index_in_dim(proposal.scores, at, 1, keepdims=False)
    kept, replaced = (keys_for(purpose, keys, seen) for purpose in (KEEPING, REPLACING))
    wanted = sampler.process(wide(logits), seen)
    return _draw(wanted, scores, offer, place < proposal.count, kept, replaced)


def _draw(
    scores: Float[Array, "rows vocab"],
    drafted: Float[Array, "rows vocab"],
    offer: Int[Array, " rows"],
    offered: Bool[Array, " rows"],
    to_keep: Keys,
    to_replace: Keys,
) -> tuple[Int[Array, " rows"], Bool[Array, " rows"]]:
    """A token drawn from `softmax(scores)`: as often as may be the one that was offered.

    That is kept with probability `min(1, p / q)`. Otherwise, one is drawn from `max(p - q, 0)`,
    which together with what is kept makes `p`.
    """
    p, q = jax.nn.softmax(scores), jax.nn.softmax(drafted.astype(scores.dtype))
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (), p.dtype))(to_keep)
    own, theirs = (jnp.take_along_axis(x, offer[:, None], axis=1)[:, 0] for x in (p, q))
    kept = offered & (uniform * theirs < own)
    left = jnp.maximum(p - q, 0)
    # Where rounding leaves nothing, the two distributions are one.
    left = jnp.where(offered[:, None] & (left.sum(-1, keepdims=True) > 0), left, p)
    return jnp.where(kept, offer, draw(jnp.log(left), to_replace)), kept
