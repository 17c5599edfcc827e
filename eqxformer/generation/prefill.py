"""Reading prompts: in one pass or in several, into a cache that has room for what follows."""

from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from eqxformer.constraints import fetched
from eqxformer.generation.long_texts import check_growth, reads
from eqxformer.generation.processors import Seen
from eqxformer.generation.prompts import Prompts, Rows, Valid, as_rows, bucket
from eqxformer.generation.state import (
    GenerationState,
    Model,
    check_room,
    copied,
    decoder_config,
    positions_of,
)
from eqxformer.layers.masks import Padding
from eqxformer.models.audio import AudioEncoder
from eqxformer.models.decoder_lm import ModelCache
from eqxformer.models.encoder_decoder import EncoderDecoder

Start = int | tuple[int, ...] | list[list[int]]
Frames = Float[Array, "rows frames bins"]


class Given(NamedTuple):
    """What a decoder begins with, and what it looks at beside that."""

    rows: Rows
    source: Array | None
    source_mask: Padding | None


def prefill(
    model: Model,
    prompts: Prompts | Frames,
    *,
    slots: int,
    valid: Valid | None = None,
    start: Start | None = None,
    chunk: int | None = None,
) -> GenerationState:
    """Prompts read into a cache with room for `slots` tokens a row, and the logits that follow.

    Prompts of other lengths compile nothing anew as long as the longest has the same next power of
    two, or beyond 1,024 tokens what is left of it after passes of so many.

    Arguments:
        prompts: a list of lists of token ids, or an array of them; for an encoder-decoder, the
            sources, which may be the frames that an `AudioEncoder` hears.
        slots: how many tokens a row has room for, the prompt's and new ones.
        valid: true for real tokens, for an array with padding on either side.
        start: how every target begins, for an encoder-decoder: an id, several, or a list per row.
        chunk: how many tokens are read in a pass, which bounds memory; at most 1024 if None.

    Raises `ValueError` for an empty prompt, an id outside the vocabulary, or too many tokens.

    Example:
        >>> import eqxformer as ef, jax
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=32)
        >>> model = config.build(key=jax.random.key(0))
        >>> state = ef.prefill(model, [[1, 2, 3], [4]], slots=16)
        >>> [len(row) for row in ef.decode(model, state.repeat(2), max_new_tokens=5).tokens()]
        [8, 8, 6, 6]
    """
    return opened(model, as_given(model, prompts, valid, start), slots, chunk)


def append(
    model: Model, state: GenerationState, prompts: Prompts, *, chunk: int | None = None
) -> GenerationState:
    """The state with more tokens given to every row, as when a person answers in a conversation.

    Arguments as in `prefill`. Rows that were finished go on.

    Raises `ValueError` for other rows than the state has, or more tokens than there are slots.

    Example:
        >>> import eqxformer as ef, jax
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=32)
        >>> model = config.build(key=jax.random.key(0))
        >>> state = ef.prefill(model, [[1, 2, 3], [4]], slots=16)
        >>> ef.append(model, state, [[5], [6, 7]]).tokens()
        [[1, 2, 3, 5], [4, 6, 7]]
    """
    config = decoder_config(model)
    more = as_rows(prompts, None, config.vocab)
    if more.tokens.shape[0] != state.rows:
        raise ValueError(f"The state has {state.rows} rows; got {more.tokens.shape[0]} prompts.")
    before, read = fetched(state.seen.length), fetched(state.cache.length)
    after = before + more.lengths
    if after.max() > state.slots:
        raise ValueError(
            f"The state has {state.slots} slots and would have to hold {after.max()} tokens; "
            "begin with a larger `slots`."
        )
    check_room(model, int(after.max()), 1)
    check_growth(config, read, after)
    tokens = fetched(state.seen.tokens).copy()
    for row, (a, b) in enumerate(zip(before, after, strict=True)):
        tokens[row, a:b] = more.tokens[row, : b - a]
    lengths = after - read
    unread = np.zeros((state.rows, int(lengths.max())), np.int32)
    for row, (a, b) in enumerate(zip(read, after, strict=True)):
        unread[row, : b - a] = tokens[row, a:b]
    unfinished = jax.device_put(np.zeros(state.rows, bool))
    state = GenerationState(_seen(tokens, after), state.cache, None, unfinished, state.source)
    rows = Rows(unread, lengths)
    pieces = reads(config, rows.longest, chunk, int(read.max()))
    return _read_all(model, copied(state), rows, pieces)


def as_given(model: Model, prompts: Any, valid: Any, start: Start | None) -> Given:
    """Prompts, or sources and how their targets begin, checked against the model."""
    if isinstance(model, EncoderDecoder):
        source, mask = _source(model, prompts, valid)
        return Given(_targets(model, start, source.shape[0]), source, mask)
    if start is not None:
        raise ValueError("`start` is for encoder-decoders; a decoder continues its prompts.")
    return Given(as_rows(cast(Prompts, prompts), valid, model.config.vocab), None, None)


def opened(
    model: Model, given: Given, slots: int, chunk: int | None, spare: int = 0
) -> GenerationState:
    """What is given, read into a new cache, which can go back by `spare` tokens."""
    rows = given.rows
    if rows.longest > slots:
        raise ValueError(f"There are {slots} slots, and a prompt has {rows.longest} tokens.")
    check_room(model, rows.longest, 1)
    first, *others = reads(decoder_config(model), rows.longest, chunk)
    source = (given.source, given.source_mask)
    seen = _seen(rows.padded(slots), rows.lengths)
    state = _open(model, source, seen, *piece(rows, *first), spare)
    return _read_all(model, state, rows, others)


def read_newest(model: Model, state: GenerationState) -> GenerationState:
    """The state with each unfinished row's newest token read, so that there are logits.

    The cache of the given one is written over.
    """
    if state.logits is not None:
        return state
    last = fetched(state.seen.length)[:, None] - 1
    newest = np.take_along_axis(fetched(state.seen.tokens), last, axis=1)
    going = ~fetched(state.finished)[:, None]
    return _read_over(model, state, jax.device_put(newest), jax.device_put(going))


def _source(model: EncoderDecoder, prompts: Any, valid: Any) -> tuple[Array, Padding | None]:
    """The source in a bucket, and which places of it are real."""
    encoder = model.config.encoder
    if isinstance(encoder, AudioEncoder.Config):
        frames = jnp.asarray(prompts)
        if frames.ndim != 3 or not jnp.issubdtype(frames.dtype, jnp.floating):
            raise ValueError(
                "This model hears audio: `prompts` must be frames, a float array of [rows, frames, "
                f"bins]; got {frames.dtype}{list(frames.shape)}."
            )
        if valid is not None:
            raise ValueError("`valid` is for prompts of tokens; frames of audio are all heard.")
        _check_frames(encoder, frames.shape[1])
        return frames, None
    rows = as_rows(prompts, valid, encoder.vocab)
    room = positions_of(encoder)
    if room is not None and rows.longest > room:
        raise ValueError(
            f"The encoder has {room} positions; got a source of {rows.longest} tokens."
        )
    size = bucket(rows.longest) if room is None else min(bucket(rows.longest), room)
    return jax.device_put(rows.padded(size)), Padding(jax.device_put(rows.valid(size)))


def _check_frames(encoder: AudioEncoder.Config, frames: int) -> None:
    """Raises `ValueError` for audio of more places than there are positions."""
    room = positions_of(encoder)
    stride = encoder.embedding.first.stride * encoder.embedding.second.stride
    if room is not None and frames > room * stride:
        raise ValueError(
            f"The encoder has positions for {room * stride:,} frames; got {frames:,}. Cut the "
            "audio in pieces."
        )


def _targets(model: EncoderDecoder, start: Start | None, rows: int) -> Rows:
    """How the targets begin."""
    if start is None:
        raise ValueError("An encoder-decoder needs `start`, the first token of its target.")
    if isinstance(start, (int, np.integer)):
        start = (int(start),)
    lists = list(start) if isinstance(start, list) else [list(start)] * rows
    if len(lists) != rows:
        raise ValueError(f"`start` must have a list per row, {rows}; got {len(lists)}.")
    vocab = model.config.decoder.vocab
    for ids in lists:
        if not isinstance(ids, (list, tuple, np.ndarray)):
            raise ValueError(
                "`start` must be an id, several in a tuple, or a list of one list per row; "
                f"got {start}."
            )
        if not len(ids) or not all(0 <= each < vocab for each in ids):
            raise ValueError(f"`start` must be at least 0 and below {vocab}; got {ids}.")
    return as_rows(lists, None, vocab)


def _seen(tokens: np.ndarray, lengths: np.ndarray) -> Seen:
    """Rows of which every token has been given. Unlike `jnp.asarray`, this compiles nothing."""
    each = (jax.device_put(lengths.astype(np.int32)) for _ in ("length", "prompt", "limit"))
    return Seen(jax.device_put(tokens), *each)


def _read_all(
    model: Model, state: GenerationState, rows: Rows, pieces: list[tuple[int, int]]
) -> GenerationState:
    """The state with all pieces read; the cache of the given one is written over."""
    for begin, size in pieces:
        state = _read_over(model, state, *piece(rows, begin, size))
    return state


def piece(rows: Rows, begin: int, size: int) -> tuple[Array, Array]:
    """The tokens of one pass, and which of them are real."""
    rest = rows.after(begin)
    return jax.device_put(rest.padded(size)), jax.device_put(rest.valid(size))


@eqx.filter_jit
def _open(
    model: Model,
    source: tuple[Array | None, Padding | None],
    seen: Seen,
    tokens: Array,
    valid: Array,
    spare: int,
) -> GenerationState:
    rows, slots = seen.tokens.shape
    if isinstance(model, EncoderDecoder):
        cache = model.init_cache(source[0], slots, source_mask=source[1])  # pyright: ignore[reportArgumentType]
    else:
        cache = model.init_cache((rows,), slots)
    cache = cache.emptied(spare) if spare else cache
    finished = jnp.zeros(rows, bool)
    return _advance(model, GenerationState(seen, cache, None, finished, source[1]), tokens, valid)


def _read_over(
    model: Model, state: GenerationState, tokens: Array, valid: Array
) -> GenerationState:
    """The state with these tokens read into its cache, which nobody else may look at."""
    rest = eqx.tree_at(lambda s: s.cache, state, None)
    return _read((model, rest, tokens, valid), state.cache)


@eqx.filter_jit(donate="all-except-first")
def _read(given: tuple[Model, GenerationState, Array, Array], cache: ModelCache) -> GenerationState:
    model, rest, tokens, valid = given
    state = eqx.tree_at(lambda s: s.cache, rest, cache, is_leaf=lambda x: x is None)
    return _advance(model, state, tokens, valid)


def _advance(model: Model, state: GenerationState, tokens: Array, valid: Array) -> GenerationState:
    """The state with these tokens read; logits are those behind each row's last one."""
    hidden, cache = model.read(tokens, state.cache, mask=Padding(valid), source_mask=state.source)
    last = jnp.maximum(valid.sum(-1, dtype=jnp.int32) - 1, 0)
    logits = model.logits(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])
    if state.logits is not None:
        read = jnp.broadcast_to(valid.any(-1)[:, None], logits.shape)
        logits = jnp.where(read, logits, state.logits)
    return GenerationState(state.seen, cache, logits, state.finished, state.source)
