"""The decode loop: one token a step in every row, compiled once, until all rows are done."""

import operator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from eqxformer.constraints import fetched
from eqxformer.generation._token_ids import check_vocabulary
from eqxformer.generation.following import joined, parted, where_rows
from eqxformer.generation.long_texts import check_growth
from eqxformer.generation.prefill import read_newest
from eqxformer.generation.processors import Processor, Seen
from eqxformer.generation.samplers import (
    Greedy,
    Piped,
    Sampler,
    as_sampler,
    drawing_apart,
    nothing_to_choose,
)
from eqxformer.generation.state import (
    GenerationState,
    Model,
    check_room,
    copied,
    decoder_config,
    row_keys,
)
from eqxformer.generation.stops import Stop, as_stop
from eqxformer.layers.masks import Padding


class Choices(NamedTuple):
    """How tokens are chosen, and when a row is finished."""

    sampler: Sampler
    stop: Stop
    key: Key[Array, "*rows"] | None


class Carry(NamedTuple):
    """What a step of the loop hands to the next."""

    step: Array
    state: GenerationState
    memories: Any
    done: Array
    stuck: Array


def decode(
    model: Model,
    state: GenerationState,
    *,
    max_new_tokens: int,
    sampler: Sampler | Processor = Greedy(),
    stop: int | tuple[int, ...] | Stop | None = (),
    key: Key[Array, "*rows"] | None = None,
) -> GenerationState:
    """The state after at most `max_new_tokens` more tokens in every row that is not finished.

    Going on from it with the same settings gives what one call for all tokens would have given,
    but for processors that count from the end, which is that of each call: `Force` with negative
    steps, and patterns that are to be complete within the limit. Arguments as in `generate`; the
    given state stays as it is.

    Raises `ValueError` for more tokens than the state has slots or the model positions, a missing
    key, a row that the sampler has no token for, and with `LongRoPE` for a row that would grow
    beyond its `original_length`, where all places are turned otherwise.

    Example:
        >>> import eqxformer as ef, jax
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=32)
        >>> model = config.build(key=jax.random.key(0))
        >>> state = ef.prefill(model, [[1, 2, 3]], slots=16)
        >>> twice = ef.decode(model, ef.decode(model, state, max_new_tokens=2), max_new_tokens=3)
        >>> once = ef.decode(model, state, max_new_tokens=5)
        >>> twice.tokens() == once.tokens()
        True
    """
    max_new_tokens = operator.index(max_new_tokens)
    choices = check_choices(model, state.rows, max_new_tokens, sampler, stop, key)
    state = copied(limited(model, state, max_new_tokens))
    return run(model, choices, read_newest(model, state), max_new_tokens)


def limited(model: Model, state: GenerationState, new: int) -> GenerationState:
    """The state with room for so many more tokens, written down in it."""
    unfinished = ~fetched(state.finished)
    length = fetched(state.seen.length)
    longest = int(length[unfinished].max()) if unfinished.any() else 0
    if longest and longest + new > state.slots:
        raise ValueError(
            f"The state has {state.slots} slots, {longest} of them taken, so that it can hold "
            f"{state.slots - longest} new tokens; got max_new_tokens={new}. Begin with a larger "
            "`slots`."
        )
    if longest:
        check_room(model, longest, new)
        read = fetched(state.cache.length)  # the newest token of a state gone on from is not
        after = np.where(unfinished, length + max(new - 1, 0), read)
        check_growth(decoder_config(model), read, after)
    limit = jax.device_put((length + new).astype(np.int32))
    return eqx.tree_at(lambda s: s.seen.limit, state, limit)


def check_choices(
    model: Model,
    rows: int,
    new: int,
    sampler: Sampler | Processor,
    stop: int | tuple[int, ...] | Stop | None,
    key: Key[Array, "*rows"] | None,
) -> Choices:
    """How tokens are chosen, checked against the model."""
    vocab = decoder_config(model).vocab
    if new < 0:
        raise ValueError(f"`max_new_tokens` must not be negative; got {new}.")
    name = "The sampler" if isinstance(sampler, Piped) else type(sampler).__name__
    sampler, stop = as_sampler(sampler), as_stop(stop)
    if sampler.needs_key and key is None:
        raise ValueError(f"{name} draws at random and needs a `key`; got none.")
    key = _typed(key)
    if key is not None and key.shape not in ((), (rows,)):
        raise ValueError(f"`key` must be one key, or one per row, {rows}; got {key.shape}.")
    check_vocabulary((sampler, stop), vocab)
    return Choices(sampler, stop, key if sampler.needs_key else None)


def _typed(key: Any) -> Any:
    """A key as `jax.random.key` makes it, with which every row draws for itself.

    Those of `jax.random.PRNGKey` are arrays of numbers.
    """
    if key is None:
        return None
    kind = getattr(key, "dtype", None)
    if kind == jnp.uint32:
        key = jax.random.wrap_key_data(key)
    elif kind is None or not jnp.issubdtype(kind, jax.dtypes.prng_key):
        raise ValueError(f"`key` must be a key, such as jax.random.key(0); got {key!r:.60}.")
    return drawing_apart(key)


def run(model: Model, choices: Choices, state: GenerationState, steps: int) -> GenerationState:
    """The loop on a state that may be written over; raises for rows that have no token."""
    if steps == 0:
        return state
    state, stuck = _loop((model, choices, jax.device_put(np.int32(steps))), state)
    if (without := np.flatnonzero(fetched(stuck))).size:
        raise ValueError(nothing_to_choose(int(without[0])))
    return state


@eqx.filter_jit(donate="all-except-first")
def _loop(
    given: tuple[Model, Choices, Int[Array, ""]], state: GenerationState
) -> tuple[GenerationState, Array]:
    model, choices, steps = given
    rows, keys = state.rows, row_keys(choices.key, state.rows)
    followers = (choices.sampler.begin(rows), choices.stop.begin(rows))
    memories, rest = parted(_caught_up(followers, state.seen))

    def choose(logits: Array, carry: Carry) -> Carry:
        """The state with a token more in every row that is not done."""
        sampler, stop = joined(carry.memories, rest)
        seen = carry.state.seen
        token = sampler(logits, keys_of(keys, seen.length), seen)
        stuck = carry.stuck | (~carry.done & (token < 0))
        going = ~carry.done & ~stuck
        seen = seen.add(token, where=going)
        sampler, stop = sampler.after(token), stop.after(token)
        finished = carry.state.finished | (going & stop.reached(seen))
        state = GenerationState(seen, carry.state.cache, None, finished, carry.state.source)
        done = finished | stuck | (seen.length >= seen.limit)
        return Carry(carry.step + 1, state, parted((sampler, stop))[0], done, stuck)

    def step(carry: Carry) -> Carry:
        state = carry.state
        hidden, cache = model.read(
            state.seen.newest()[:, None],
            state.cache,
            mask=Padding(~carry.done[:, None]),
            source_mask=state.source,
        )
        state = GenerationState(state.seen, cache, None, state.finished, state.source)
        return choose(model.logits(hidden[:, 0]), carry._replace(state=state))

    def going(carry: Carry) -> Array:
        return (carry.step < steps) & ~carry.done.all()

    done = state.finished | (state.seen.length >= state.seen.limit)
    carry = Carry(jnp.asarray(0, jnp.int32), state, memories, done, jnp.zeros(rows, bool))
    carry = choose(state.logits, carry)  # pyright: ignore[reportArgumentType]
    carry = jax.lax.while_loop(going, step, carry)
    return carry.state, carry.stuck


def keys_of(keys: Key[Array, " rows"] | None, length: Array) -> Key[Array, " rows"] | None:
    """The keys of the tokens at these places of their rows."""
    return None if keys is None else jax.vmap(jax.random.fold_in)(keys, length)


def _caught_up(followers: Any, seen: Seen) -> Any:
    """The followers after the tokens that have been made already."""
    memories, rest = parted(followers)
    if not jax.tree.leaves(memories):
        return followers

    def after(i: Array, memories: Any) -> Any:
        place = jnp.minimum(seen.prompt + i, seen.tokens.shape[1] - 1)
        token = jnp.take_along_axis(seen.tokens, place[:, None], axis=1)[:, 0]
        before = joined(memories, rest)
        later = tuple(each.after(token) for each in before)
        return where_rows(i < seen.new, parted(later)[0], memories)

    return joined(jax.lax.fori_loop(0, seen.new.max(), after, memories), rest)
