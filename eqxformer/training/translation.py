"""What an encoder-decoder over texts makes of texts: beam search over batches of like length."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PRNGKeyArray

from eqxformer.data.pairs import TokenPairs
from eqxformer.data.parallel import ParallelText
from eqxformer.data.tokenizer import Tokenizer
from eqxformer.generation import beam_search, generate
from eqxformer.generation.processors import Processor
from eqxformer.generation.prompts import bucket
from eqxformer.generation.samplers import Sampler

_ROWS = 64  # sources that are translated at a time


def translate(
    model: Any,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    beams: int = 5,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    sampler: Sampler | Processor | None = None,
    key: PRNGKeyArray | None = None,
    rows: int = _ROWS,
) -> list[str]:
    """The best translation of every text that a beam search finds, or one that a sampler draws.

    A translation may have twice the tokens of the longest source that it shares a batch with,
    counted up to the next power of two and 16 at least, and ten more.

    Arguments:
        model: an encoder-decoder trained on `Pairs` with this tokenizer.
        texts: in the form of the texts that the model was trained on.
        beams, length_penalty, early_stopping: see `beam_search`.
        sampler: chooses each token in place of the beam search, as in `generate`:
            `Temperature(0.7)` draws other words of about the same meaning, `Greedy()` takes the
            likeliest.
        key: for a sampler that draws; with it, a translation depends on its text and its place
            among the texts alone.
        rows: texts that are translated at a time; the longest are first.

    Raises `ValueError` for a key without a sampler, and for a sampler that draws without a key.

    Example:
        >>> import eqxformer as ef
        >>> model = ef.load("run/best")  # doctest: +SKIP
        >>> tokenizer = ef.Subwords.read("run/tokenizer.json")  # doctest: +SKIP
        >>> ef.translate(model, ["a dog"], tokenizer, beams=4)  # doctest: +SKIP
        ['ein hund']
    """
    if key is not None and sampler is None:
        raise ValueError("`key` is for a sampler, such as `sampler=ef.Temperature(0.7)`; got none.")
    if not texts:
        return []
    search = {"beams": beams, "length_penalty": length_penalty, "early_stopping": early_stopping}
    pairs = TokenPairs.of(ParallelText(tuple(texts), tuple("" for _ in texts)), tokenizer)
    sources = [ids.tolist() for ids in np.split(pairs.source.ids, pairs.source.ends[:-1])]
    order = sorted(range(len(texts)), key=lambda i: -len(sources[i]))
    size = min(rows, len(texts))
    found: dict[int, str] = {}
    for begin in range(0, len(order), size):
        here = order[begin : begin + size]
        filled = here + here[-1:] * (size - len(here))  # one shape: each is a program
        given = [sources[i] for i in filled]
        ends = {"start": tokenizer.start, "stop": (tokenizer.end,)}
        ends["max_new_tokens"] = 2 * bucket(len(sources[here[0]])) + 10
        if sampler is None:
            made = [best for best, *_ in beam_search(model, given, **search, **ends).tokens]
        else:
            made = generate(model, given, sampler=sampler, key=_keys(key, filled), **ends)
        for i, ids in zip(here, made, strict=False):
            found[i] = tokenizer.decode([id for id in ids if id < tokenizer.vocab])
    return [found[i] for i in range(len(texts))]


def _keys(key: PRNGKeyArray | None, numbers: list[int]) -> Key[Array, " rows"] | None:
    """A key for each of these texts."""
    if key is None:
        return None
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(numbers))
