"""How likely a model finds given texts."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from eqxformer.constraints import fetched
from eqxformer.generation.long_texts import reads
from eqxformer.generation.prefill import as_given, piece
from eqxformer.generation.prompts import Prompts, Rows, as_rows, slots_for
from eqxformer.generation.state import Model, check_room, decoder_config
from eqxformer.layers.masks import Padding
from eqxformer.models.decoder_lm import ModelCache
from eqxformer.models.encoder_decoder import EncoderDecoder

BLOCK = 128  # places whose logits are there at one time


def score(
    model: Model,
    texts: Prompts,
    *,
    source: Any = None,
    window: int | None = None,
    chunk: int | None = None,
) -> list[list[float]]:
    """The log-probability of every token but the first, given those before it: `log p(x_i | x_<i)`.

    Natural logarithms. The perplexity of a row is `exp(-mean)` of its numbers. Texts are read in
    passes, and the logits of a few places only are there at one time, so that long texts fit.

    Arguments:
        texts: rows of token ids, as a list of lists or an array without padding. What a row is
            measured from, such as a token that begins a text, is its first id.
        source: what the encoder of an encoder-decoder reads; the texts are then the targets.
        window: how many tokens are seen at once, for decoders: a longer text is read in windows,
            each of which begins with the second half of the one before. All of them if None.
        chunk: how many tokens are read in a pass; at most 1024 if None.

    Raises `ValueError` for an empty row, an id outside the vocabulary, or more tokens at once than
    the model has positions.

    Example:
        >>> import eqxformer as ef, jax, math
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=16)
        >>> model = config.build(key=jax.random.key(0))
        >>> (row,) = ef.score(model, [[1, 2, 3, 4]])
        >>> len(row), max(row) < 0.0
        (3, True)
    """
    if isinstance(model, EncoderDecoder) != (source is not None):
        raise ValueError("An encoder-decoder needs a `source`, and a decoder has none.")
    vocab = decoder_config(model).vocab
    rows = as_rows(texts, None, vocab)
    if window is None:
        return _score(model, rows, source, chunk)
    if window < 2 or source is not None:
        raise ValueError(f"`window` must be at least 2, and is for decoders; got {window}.")
    return [_in_windows(model, row, window, chunk) for row in rows.lists()]


def _in_windows(model: Any, text: list[int], window: int, chunk: int | None) -> list[float]:
    """The numbers of one text, of which so many tokens are seen at once."""
    found: list[float] = []
    begin, kept = 0, max(1, window // 2)
    while True:
        seen = as_rows([text[begin : begin + window]], None, model.config.vocab)
        (numbers,) = _score(model, seen, None, chunk)
        found += numbers[len(found) - begin :]
        if begin + window >= len(text):
            return found
        begin += window - kept


def _score(model: Model, rows: Rows, source: Any, chunk: int | None) -> list[list[float]]:
    """The numbers of rows that are seen as a whole."""
    check_room(model, rows.longest, 1)
    slots = slots_for(rows.longest)
    if isinstance(model, EncoderDecoder):
        if len(source) != rows.count:
            raise ValueError(f"There are {rows.count} texts, and {len(source)} sources for them.")
        given = as_given(model, source, None, [row[:1] for row in rows.lists()])
        cache, mask = _remembered(model, given.source, given.source_mask, slots), given.source_mask
    else:
        cache, mask = _empty(model, rows.count, slots), None
    found = []
    for begin, size in reads(decoder_config(model), rows.longest, chunk):
        tokens, valid = piece(rows, begin, size)
        targets, _ = piece(rows, begin + 1, size)
        numbers, cache = _scores(model, cache, tokens, valid, targets, mask)
        found.append(fetched(numbers))
    numbers = np.concatenate(found, axis=1)
    return [row[: length - 1].tolist() for row, length in zip(numbers, rows.lengths, strict=True)]


@eqx.filter_jit
def _empty(model: Any, count: int, slots: int) -> ModelCache:
    return model.init_cache((count,), slots)


@eqx.filter_jit
def _remembered(model: Any, source: Any, mask: Padding | None, slots: int) -> ModelCache:
    return model.init_cache(source, slots, source_mask=mask)


@eqx.filter_jit(donate="all-except-first")
def _scores(
    model: Any,
    cache: ModelCache,
    tokens: Int[Array, "rows seq"],
    valid: Bool[Array, "rows seq"],
    targets: Int[Array, "rows seq"],
    source: Padding | None,
) -> tuple[Float[Array, "rows seq"], ModelCache]:
    """The log-probability of the target behind each token, and the cache with the tokens read."""
    hidden, cache = model.read(tokens, cache, mask=Padding(valid), source_mask=source)
    rows, seq, dim = hidden.shape
    size = min(BLOCK, seq)
    spare = -seq % size
    blocks = jnp.pad(hidden, ((0, 0), (0, spare), (0, 0))).reshape(rows, -1, size, dim)
    wanted = jnp.pad(targets, ((0, 0), (0, spare))).reshape(rows, -1, size)

    def each(block: tuple[Array, Array]) -> Array:
        logits = model.logits(block[0])
        logits = logits.astype(np.promote_types(logits.dtype, np.float32))
        chosen = jnp.take_along_axis(logits, block[1][..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    numbers = jax.lax.map(each, (jnp.swapaxes(blocks, 0, 1), jnp.swapaxes(wanted, 0, 1)))
    return jnp.swapaxes(numbers, 0, 1).reshape(rows, -1)[:, :seq], cache
