"""Where generation is: the tokens of every row, and what the model remembers of them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key

from eqxformer.constraints import fetched
from eqxformer.generation.processors import Seen
from eqxformer.layers.masks import Padding
from eqxformer.models.decoder_lm import DecoderLM, ModelCache
from eqxformer.models.encoder_decoder import EncoderDecoder

Model = DecoderLM | EncoderDecoder


class GenerationState(eqx.Module):
    """Rows of tokens with a cache: what `prefill` gives, and what `decode` takes and gives.

    A value like any other: keep it, go on from it twice, save it. The cache has read all tokens but
    a row's newest one.

    Arguments:
        seen: the tokens of every row, prompt and new ones.
        cache: what the model remembers of them.
        logits: the scores of each row's next token; None if its newest token has not been read.
        finished: rows that a stop has ended.
        source: which places of an encoder-decoder's source are real.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> model = ef.shapes(ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8))
        >>> seen = ef.Seen.start(jnp.array([[5, 6, 7]]), None, new=2).add(jnp.array([9]))
        >>> cache = model.init_cache((1,), slots=5)
        >>> state = ef.GenerationState(seen, cache, None, jnp.zeros(1, bool), None)
        >>> state.tokens(), state.new_tokens(), state.slots
        ([[5, 6, 7, 9]], [[9]], 5)
    """

    seen: Seen
    cache: ModelCache
    logits: Float[Array, "rows vocab"] | None
    finished: Bool[Array, " rows"]
    source: Padding | None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.seen.tokens.shape[0]

    @property
    def slots(self) -> int:
        """How many tokens a row has room for."""
        return self.seen.tokens.shape[1]

    def tokens(self) -> list[list[int]]:
        """All tokens of every row, the prompt's among them."""
        return self._between(np.zeros(self.rows, int))

    def new_tokens(self) -> list[list[int]]:
        """The tokens that were made, of every row."""
        return self._between(fetched(self.seen.prompt))

    def repeat(self, times: int) -> "GenerationState":
        """Every row `times` over, next to each other: many answers to a prompt that is read once.

        Raises `ValueError` for less than one.
        """
        if times < 1:
            raise ValueError(f"`times` must be positive; got {times}.")
        return self.take(jnp.repeat(jnp.arange(self.rows), times))

    def take(self, rows: Int[Array, " taken"]) -> "GenerationState":
        """These rows, in this order; a row may be taken several times.

        Raises `ValueError` for a row that there is not; as everywhere, -1 is the last one. Under
        `jit`, where that cannot be seen, it is the nearest there is.
        """
        if not isinstance(rows, Tracer):
            numbers = fetched(rows)
            wrong = numbers[(numbers < -self.rows) | (numbers >= self.rows)]
            if wrong.size:
                raise ValueError(
                    f"`rows` must be at least {-self.rows} and below {self.rows}; got {wrong[0]}."
                )
        return _take(self, rows)

    def _between(self, begin: np.ndarray) -> list[list[int]]:
        tokens, ends = fetched(self.seen.tokens), fetched(self.seen.length)
        return [row[a:b].tolist() for row, a, b in zip(tokens, begin, ends, strict=True)]


def row_keys(key: Key[Array, "*rows"] | None, rows: int) -> Key[Array, " rows"] | None:
    """A key for each row: the given ones, or a single one folded with the row's number."""
    if key is None or key.ndim == 1:
        return key
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


def check_room(model: Model, given: int, new: int) -> None:
    """Refuses more tokens than a table of positions has; the last new one is never read."""
    room = positions_of(decoder_config(model))
    if room is not None and given + new - 1 > room:
        raise ValueError(
            f"The model has {room} positions, so that after {given} tokens it can make at most "
            f"{max(room - given + 1, 0)} new ones; got max_new_tokens={new}."
        )


def decoder_config(model: Model) -> Any:
    """The config of what writes: the decoder of an encoder-decoder, or the model's own."""
    return model.config.decoder if isinstance(model, EncoderDecoder) else model.config


def positions_of(config: Any) -> int | None:
    """How many places a model has a position for; None if there is no end to them."""
    return getattr(config.embedding.positions, "length", None)


@eqx.filter_jit
def copied(state: GenerationState) -> GenerationState:
    """The same state in arrays of its own, which a loop may then write over."""
    return jax.tree.map(jnp.copy, state)


@eqx.filter_jit
def _take(state: GenerationState, rows: Array) -> GenerationState:
    cache = state.cache.each(lambda leaf: leaf[rows])
    rest = eqx.tree_at(lambda s: s.cache, state, None)
    taken = jax.tree.map(lambda leaf: leaf[rows], rest)
    return eqx.tree_at(lambda s: s.cache, taken, cache, is_leaf=lambda x: x is None)
