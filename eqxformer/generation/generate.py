"""Generation: the prompts in one pass, then a compiled loop of one token a step."""

import operator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from eqxformer.generation.decode import check_choices, limited, run
from eqxformer.generation.prefill import Frames, Given, Start, as_given, opened
from eqxformer.generation.processors import Processor
from eqxformer.generation.prompts import Prompts, Valid, slots_for
from eqxformer.generation.samplers import Greedy, Sampler
from eqxformer.generation.state import GenerationState, Model, check_room
from eqxformer.generation.stops import AnyStop, Stop, StopIds


def generate(
    model: Model,
    prompts: Prompts | Frames,
    *,
    max_new_tokens: int,
    sampler: Sampler | Processor = Greedy(),
    valid: Valid | None = None,
    start: Start | None = None,
    stop: int | tuple[int, ...] | Stop | None = (),
    slots: int | None = None,
    chunk: int | None = None,
    key: Key[Array, "*rows"] | None = None,
) -> Int[Array, "rows new"] | list[list[int]]:
    """The tokens that follow each prompt, or that the decoder writes for each source.

    Prompts given as lists are answered with lists, each as long as it is; those given as an array
    with an array, whose finished rows are filled up with the first stop id, or 0. Compiled are a
    pass per next power of two of the longest prompt (beyond 1,024 tokens, of what is left after
    passes of so many) and a loop, both per number of slots and rows. Slots come in steps, of 64 and
    then an eighth or so: within a step, other prompts, numbers in the sampler, stop ids, keys and
    `max_new_tokens` compile nothing anew.

    Arguments:
        model: a decoder, whose prompts are continued, or an encoder-decoder, whose prompts are the
            sources.
        prompts: token ids, as a list of lists or as an array with a row per prompt; the frames that
            are heard, for a model with an `AudioEncoder`.
        max_new_tokens: how many tokens to make.
        sampler: how a token is chosen; a processor, such as `TopP(0.9)`, draws from what it leaves.
        valid: true for real tokens, for an array of prompts padded on either side.
        start: how the target begins, for an encoder-decoder: an id, several, or a list per row.
        stop: ids after which a row is finished, or another condition, such as `StopWhen(...)`.
        slots: tokens that a row of the cache has room for; as many as needed, rounded up, if None.
        chunk: how many tokens of the prompts are read at once; at most 1024 if None.
        key: for samplers that draw: one key, which is folded with the row's number, or one per row,
            on which alone that row's text then depends.

    Raises `ValueError` for an empty prompt, an id outside the vocabulary, a missing key or start,
    more tokens than there are positions or slots, or a row that the sampler has no token for.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=16)
        >>> model = config.build(key=jax.random.key(0))
        >>> ef.generate(model, jnp.array([[1, 2, 3]]), max_new_tokens=5).shape
        (1, 5)
        >>> [len(made) for made in ef.generate(model, [[1, 2, 3], [4]], max_new_tokens=5)]
        [5, 5]
    """
    given = as_given(model, prompts, valid, start)
    max_new_tokens = operator.index(max_new_tokens)
    choices = check_choices(model, given.rows.count, max_new_tokens, sampler, stop, key)
    state = begun(model, given, max_new_tokens, slots, chunk)
    made = run(model, choices, state, max_new_tokens).new_tokens()
    return as_asked(prompts, made, max_new_tokens, choices.stop)


def as_asked(
    prompts: Any, made: list[list[int]], new: int, stop: Stop
) -> Int[Array, "rows new"] | list[list[int]]:
    """Lists for prompts given as lists; for an array, an array of `new` tokens a row."""
    if isinstance(prompts, (list, tuple)):
        return made
    filled = np.full((len(made), new), filler(stop), np.int32)
    for row, tokens in enumerate(made):
        filled[row, : len(tokens)] = tokens
    return jax.device_put(filled)


def begun(
    model: Model,
    given: Given,
    new: int,
    slots: int | None,
    chunk: int | None,
    spare: int = 0,
) -> GenerationState:
    """What is given, read, with room for so many new tokens, of which `spare` can be taken back."""
    longest = given.rows.longest
    check_room(model, longest, new)
    slots = slots_for(longest + new) if slots is None else slots
    return limited(model, opened(model, given, slots, chunk, spare), new)


def filler(stop: Stop) -> int:
    """What stands behind the last token of a row: the first stop id, or 0."""
    parts = stop.parts if isinstance(stop, AnyStop) else (stop,)
    ids = [part.ids.array for part in parts if isinstance(part, StopIds) and part.ids.array.size]
    return int(np.asarray(ids[0])[0]) if ids else 0
