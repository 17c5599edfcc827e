"""Generation: the prompt in one pass, then a compiled loop of one token a step."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, PRNGKeyArray

from eqxformer.generation._token_ids import check_vocabulary
from eqxformer.generation.processors import Processor, Seen
from eqxformer.generation.samplers import Greedy, Sampler, as_sampler, nothing_to_choose
from eqxformer.layers.masks import Padding
from eqxformer.models.audio import AudioEncoder
from eqxformer.models.decoder_lm import DecoderLM, ModelCache
from eqxformer.models.encoder import Encoder
from eqxformer.models.encoder_decoder import EncoderDecoder

Carry = tuple[Array, ModelCache, Array, Seen, Array]  # step, cache, made, seen, finished rows


def generate(
    model: DecoderLM | EncoderDecoder,
    prompts: Int[Array, "rows seq"],
    *,
    max_new_tokens: int,
    sampler: Sampler | Processor = Greedy(),
    valid: Bool[Array, "rows seq"] | None = None,
    start: int | None = None,
    stop: tuple[int, ...] = (),
    key: PRNGKeyArray | None = None,
) -> Int[Array, "rows new"]:
    """The tokens that follow each prompt, or that the decoder writes for each source.

    Arguments:
        model: a decoder, whose prompts are continued, or an encoder-decoder, whose prompts are the
            sources.
        prompts: token ids, a row per prompt.
        max_new_tokens: how many tokens to make.
        sampler: how a token is chosen; a processor, such as `TopP(0.9)`, draws from what it leaves.
        valid: true for real tokens, for prompts of several lengths, padded on either side.
        start: the first token of the target, for an encoder-decoder.
        stop: ids after which a row is finished; it is filled up with the first of them.
        key: for samplers that draw. A row's stream depends on the key and its own number alone.

    Raises `ValueError` for an empty prompt, an id outside the vocabulary, a missing key or start,
    more tokens than there are positions, or a row that the sampler has no token for.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=16)
        >>> model = config.build(key=jax.random.key(0))
        >>> ef.generate(model, jnp.array([[1, 2, 3]]), max_new_tokens=5).shape
        (1, 5)
    """
    prompts = jnp.asarray(prompts)
    _check_prompts(model, prompts, valid)
    _check_choices(model, max_new_tokens, sampler, start, stop, key)
    _check_lengths(model, prompts, valid, max_new_tokens)
    if max_new_tokens == 0:
        return jnp.zeros((prompts.shape[0], 0), jnp.int32)
    if valid is not None:
        prompts = jnp.where(valid, prompts, 0)  # padding may be any id, also none of the vocabulary
    begin = None if start is None else jnp.full((prompts.shape[0], 1), start, jnp.int32)
    made = _generate(model, prompts, valid, begin, as_sampler(sampler), max_new_tokens, stop, key)
    if (without := np.flatnonzero((np.asarray(made) < 0).any(-1))).size:
        raise ValueError(nothing_to_choose(int(without[0])))
    return made


@eqx.filter_jit
def _generate(
    model: DecoderLM | EncoderDecoder,
    prompts: Array,
    valid: Array | None,
    begin: Array | None,
    sampler: Sampler,
    max_new_tokens: int,
    stop: tuple[int, ...],
    key: PRNGKeyArray | None,
) -> Array:
    rows, mask = prompts.shape[0], None if valid is None else Padding(valid)
    if isinstance(model, EncoderDecoder):
        cache = model.init_cache(prompts, max_new_tokens, source_mask=mask)
        extend = functools.partial(model.extend, source_mask=mask)
        logits, cache = extend(begin, cache)  # pyright: ignore[reportArgumentType]
        logits = logits[:, -1]
    else:
        cache, extend = model.init_cache((rows,), prompts.shape[1] + max_new_tokens), model.extend
        hidden, cache, _ = model.run(prompts, mask=mask, cache=cache)
        logits = model.logits(_last_real(hidden, valid))
    seen = Seen.start(*((prompts, valid) if begin is None else (begin, None)), max_new_tokens)

    def choose(logits: Array, seen: Seen, done: Array, step: Array) -> tuple[Array, Array]:
        token = sampler(logits, _row_keys(key, rows, step), seen)
        if not stop:
            return token, done
        token = jnp.where(done, stop[0], token)
        return token, done | jnp.isin(token, jnp.asarray(stop))

    def going(carry: Carry) -> Array:
        return (carry[0] < max_new_tokens) & ~carry[-1].all()

    def step(carry: Carry) -> Carry:
        i, cache, tokens, seen, done = carry
        newest = jax.lax.dynamic_slice(tokens, (0, i - 1), (rows, 1))
        logits, cache = extend(newest, cache)
        token, done = choose(logits[:, -1], seen, done, i)
        tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], (0, i))
        return i + 1, cache, tokens, seen.add(token), done

    first, done = choose(logits, seen, jnp.zeros(rows, bool), jnp.asarray(0))
    tokens = jnp.full((rows, max_new_tokens), stop[0] if stop else 0, jnp.int32)
    tokens = tokens.at[:, 0].set(first)
    carry = (jnp.asarray(1), cache, tokens, seen.add(first), done)
    return jax.lax.while_loop(going, step, carry)[2]  # pyright: ignore[reportArgumentType]


def _row_keys(key: PRNGKeyArray | None, rows: int, step: Array) -> Key[Array, " rows"] | None:
    if key is None:
        return None
    now = jax.random.fold_in(key, step)
    return jax.vmap(lambda row: jax.random.fold_in(now, row))(jnp.arange(rows))


def _last_real(hidden: Array, valid: Array | None) -> Array:
    """The hidden state of each row's last real token."""
    if valid is None:
        return hidden[:, -1]
    last = valid.shape[-1] - 1 - jnp.argmax(valid[:, ::-1], axis=-1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def _check_prompts(model: DecoderLM | EncoderDecoder, prompts: Array, valid: Array | None) -> None:
    reader = model.config.encoder if isinstance(model, EncoderDecoder) else model.config
    if isinstance(reader, AudioEncoder.Config):
        raise NotImplementedError(
            "`generate` takes sources of token ids; got a model that hears audio. Its `init_cache` "
            "reads the frames, and its `extend` gives the logits of one token after another."
        )
    vocab = reader.vocab
    if prompts.ndim != 2 or 0 in prompts.shape:
        raise ValueError(f"`prompts` must be rows of at least one token; got {prompts.shape}.")
    if valid is not None and (valid.shape != prompts.shape or not np.asarray(valid).any(1).all()):
        raise ValueError(
            f"`valid` must have the shape of `prompts`, {prompts.shape}, and a real token in every "
            f"row; got shape {valid.shape}."
        )
    ids = np.asarray(prompts)[... if valid is None else np.asarray(valid)]
    wrong = ids[(ids < 0) | (ids >= vocab)]
    if wrong.size:
        raise ValueError(f"Token ids must be at least 0 and below {vocab}; got {wrong[0]}.")


def _check_choices(
    model: DecoderLM | EncoderDecoder,
    max_new_tokens: int,
    sampler: Sampler | Processor,
    start: int | None,
    stop: tuple[int, ...],
    key: PRNGKeyArray | None,
) -> None:
    seq2seq = isinstance(model, EncoderDecoder)
    vocab = (model.config.decoder if seq2seq else model.config).vocab
    if max_new_tokens < 0:
        raise ValueError(f"`max_new_tokens` must not be negative; got {max_new_tokens}.")
    if as_sampler(sampler).needs_key and key is None:
        raise ValueError(f"{type(sampler).__name__} draws at random and needs a `key`; got none.")
    if seq2seq and start is None:
        raise ValueError("An encoder-decoder needs `start`, the first token of its target.")
    if not seq2seq and start is not None:
        raise ValueError("`start` is for encoder-decoders; a decoder continues its prompts.")
    check_vocabulary(sampler, vocab)
    for name, ids in (("start", () if start is None else (start,)), ("stop", stop)):
        if not all(0 <= each < vocab for each in ids):
            raise ValueError(f"`{name}` must be at least 0 and below {vocab}; got {ids}.")


def _check_lengths(
    model: DecoderLM | EncoderDecoder, prompts: Array, valid: Array | None, new: int
) -> None:
    """Refuses more tokens than a table of positions has; the last new one is never read."""
    longest = prompts.shape[1] if valid is None else int(valid.sum(1).max())
    if isinstance(model, EncoderDecoder):
        room, decoder, given = _room(model.config.encoder), model.config.decoder, 1
        if room is not None and longest > room:
            raise ValueError(f"The encoder has {room} positions; got a source of {longest} tokens.")
    else:
        decoder, given = model.config, longest
    room = _room(decoder)
    if room is not None and given + new - 1 > room:
        raise ValueError(
            f"The model has {room} positions, so that after {given} tokens it can make at most "
            f"{max(room - given + 1, 0)} new ones; got max_new_tokens={new}."
        )


def _room(config: DecoderLM.Config | Encoder.Config | AudioEncoder.Config) -> int | None:
    return getattr(config.embedding.positions, "length", None)
