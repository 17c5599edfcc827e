"""Generation: the prompt in one pass, then a compiled loop of one token a step."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from eqxformer.generation.samplers import Greedy, Sampler
from eqxformer.layers.masks import Padding
from eqxformer.models.decoder_lm import DecoderLM, ModelCache
from eqxformer.models.encoder_decoder import EncoderDecoder

Carry = tuple[Array, ModelCache, Array, Array, Array]  # step, cache, logits, tokens, done rows


def generate(
    model: DecoderLM | EncoderDecoder,
    prompts: Int[Array, "rows seq"],
    *,
    max_new_tokens: int,
    sampler: Sampler = Greedy(),
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
        sampler: how a token is chosen.
        valid: true for real tokens, for prompts of several lengths, padded on either side.
        start: the first token of the decoder of an encoder-decoder.
        stop: ids after which a row is finished; it is filled up with the first of them.
        key: for samplers that draw. A row's stream depends on the key and its own number alone.

    Raises `ValueError` for an empty prompt, an id outside the vocabulary, a missing key or start.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=16)
        >>> model = config.build(key=jax.random.key(0))
        >>> ef.generate(model, jnp.array([[1, 2, 3]]), max_new_tokens=5).shape
        (1, 5)
    """
    prompts = jnp.asarray(prompts)
    _check(model, prompts, max_new_tokens, sampler, valid, start, key)
    if max_new_tokens == 0:
        return jnp.zeros((prompts.shape[0], 0), jnp.int32)
    return _generate(model, prompts, valid, start or 0, sampler, max_new_tokens, stop, key)


@eqx.filter_jit
def _generate(
    model: DecoderLM | EncoderDecoder,
    prompts: Array,
    valid: Array | None,
    start: int,
    sampler: Sampler,
    max_new_tokens: int,
    stop: tuple[int, ...],
    key: PRNGKeyArray | None,
) -> Array:
    rows, mask = prompts.shape[0], None if valid is None else Padding(valid)
    if isinstance(model, EncoderDecoder):
        cache = model.init_cache(prompts, max_new_tokens, source_mask=mask)
        first = jnp.full((rows, 1), start, jnp.int32)
        logits, cache = model.extend(first, cache, source_mask=mask)
        last, source_mask = logits[:, -1], mask
    else:
        cache = model.init_cache((rows,), prompts.shape[1] + max_new_tokens)
        hidden, cache, _ = model.run(prompts, mask=mask, cache=cache)
        last, source_mask = model.logits(_last_real(hidden, valid)), None

    def step(carry: Carry) -> Carry:
        i, cache, logits, tokens, done = carry
        token = sampler(logits, _row_keys(key, rows, i))
        if stop:
            token = jnp.where(done, stop[0], token)
            done = done | jnp.isin(token, jnp.asarray(stop))
        tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], (0, i))
        logits, cache = model.extend(token[:, None], cache, source_mask=source_mask)
        return i + 1, cache, logits[:, -1], tokens, done

    def going(carry: Carry) -> Array:
        return (carry[0] < max_new_tokens) & ~carry[-1].all()

    tokens = jnp.full((rows, max_new_tokens), stop[0] if stop else 0, jnp.int32)
    begin = (jnp.asarray(0), cache, last, tokens, jnp.zeros(rows, bool))
    return jax.lax.while_loop(going, step, begin)[3]


def _row_keys(key: PRNGKeyArray | None, rows: int, step: Array) -> PRNGKeyArray | None:
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


def _check(
    model: DecoderLM | EncoderDecoder,
    prompts: Array,
    max_new_tokens: int,
    sampler: Sampler,
    valid: Array | None,
    start: int | None,
    key: PRNGKeyArray | None,
) -> None:
    seq2seq = isinstance(model, EncoderDecoder)
    vocab = model.config.encoder.vocab if seq2seq else model.config.vocab
    if prompts.ndim != 2 or 0 in prompts.shape:
        raise ValueError(f"`prompts` must be rows of at least one token; got {prompts.shape}.")
    if max_new_tokens < 0:
        raise ValueError(f"`max_new_tokens` must not be negative; got {max_new_tokens}.")
    if valid is not None and (valid.shape != prompts.shape or not np.asarray(valid).any(1).all()):
        raise ValueError(
            f"`valid` must have the shape of `prompts`, {prompts.shape}, and a real token in every "
            f"row; got shape {valid.shape}."
        )
    ids = np.asarray(prompts if valid is None else jnp.where(valid, prompts, 0))
    if ids.min() < 0 or ids.max() >= vocab:
        raise ValueError(f"Token ids must be at least 0 and below {vocab}; got {ids.max()}.")
    if sampler.needs_key and key is None:
        raise ValueError(f"{type(sampler).__name__} draws at random and needs a `key`; got none.")
    if seq2seq and start is None:
        raise ValueError("An encoder-decoder needs `start`, the first token of its target.")
    _check_length(model, prompts.shape[1], max_new_tokens)


def _check_length(model: DecoderLM | EncoderDecoder, prompt: int, new: int) -> None:
    """Refuses more tokens than a table of positions has."""
    decoder = model.decoder if isinstance(model, EncoderDecoder) else model
    total = new if isinstance(model, EncoderDecoder) else prompt + new
    room = getattr(decoder.config.embedding.positions, "length", None)
    if room is not None and total > room:
        raise ValueError(
            f"The model has {room} positions; a prompt of {prompt} tokens and {new} new ones need "
            f"{total}. Ask for at most {max(room - total + new, 0)} new tokens, or shorten the prompt."
        )
