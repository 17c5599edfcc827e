"""Generation that gives its tokens as they are made."""

import operator
from collections.abc import Iterator

from jaxtyping import Array, Key

from eqxformer.constraints import fetched
from eqxformer.generation.decode import check_choices, run
from eqxformer.generation.generate import begun
from eqxformer.generation.prefill import Frames, Start, as_given, read_newest
from eqxformer.generation.processors import Processor
from eqxformer.generation.prompts import Prompts, Valid
from eqxformer.generation.samplers import Greedy, Sampler
from eqxformer.generation.state import Model
from eqxformer.generation.stops import Stop


def stream(
    model: Model,
    prompts: Prompts | Frames,
    *,
    max_new_tokens: int,
    every: int = 4,
    sampler: Sampler | Processor = Greedy(),
    valid: Valid | None = None,
    start: Start | None = None,
    stop: int | tuple[int, ...] | Stop | None = (),
    slots: int | None = None,
    chunk: int | None = None,
    key: Key[Array, "*rows"] | None = None,
) -> Iterator[list[list[int]]]:
    """The tokens that `generate` makes, given as they are made: a list per row, every few steps.

    The first token comes as soon as it is there, then those of `every` steps at a time; a row that
    is finished gives empty lists. All else is as in `generate`, whose programs this uses. Wrong
    arguments are refused at once, not at the first token.

    Example:
        >>> import eqxformer as ef, jax
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=16)
        >>> model = config.build(key=jax.random.key(0))
        >>> [len(rows[0]) for rows in ef.stream(model, [[1, 2, 3]], max_new_tokens=10)]
        [1, 4, 4, 1]
    """
    max_new_tokens, every = operator.index(max_new_tokens), operator.index(every)
    if every < 1:
        raise ValueError(f"`every` must be positive; got {every}.")
    given = as_given(model, prompts, valid, start)
    choices = check_choices(model, given.rows.count, max_new_tokens, sampler, stop, key)
    state = begun(model, given, max_new_tokens, slots, chunk)

    def pieces() -> Iterator[list[list[int]]]:
        nonlocal state
        given_out, steps, left = [0] * state.rows, 1, max_new_tokens
        while left and not fetched(state.finished).all():
            steps = min(steps, left)
            state = run(model, choices, read_newest(model, state), steps)
            new = state.new_tokens()
            yield [tokens[begin:] for tokens, begin in zip(new, given_out, strict=True)]
            given_out = [len(tokens) for tokens in new]
            left, steps = left - steps, every

    return pieces()
