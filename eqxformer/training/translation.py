"""What an encoder-decoder over texts makes of texts: beam search over batches of like length."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from eqxformer.data.pairs import TokenPairs
from eqxformer.data.parallel import ParallelText
from eqxformer.data.tokenizer import Tokenizer
from eqxformer.generation import beam_search
from eqxformer.generation.prompts import bucket

_ROWS = 64  # sources that are translated at a time


def translate(
    model: Any,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    beams: int = 5,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    rows: int = _ROWS,
) -> list[str]:
    """The best translation of every text that a beam search finds.

    A translation may have twice the tokens of the longest source that it shares a batch with,
    counted up to the next power of two and 16 at least, and ten more.

    Arguments:
        model: an encoder-decoder trained on `Pairs` with this tokenizer.
        texts: in the form of the texts that the model was trained on.
        beams, length_penalty, early_stopping: see `beam_search`.
        rows: texts that are translated at a time; the longest are first.

    Example:
        >>> import eqxformer as ef
        >>> model = ef.load("run/best")  # doctest: +SKIP
        >>> tokenizer = ef.Subwords.read("run/tokenizer.json")  # doctest: +SKIP
        >>> ef.translate(model, ["a dog"], tokenizer, beams=4)  # doctest: +SKIP
        ['ein hund']
    """
    if not texts:
        return []
    pairs = TokenPairs.of(ParallelText(tuple(texts), tuple("" for _ in texts)), tokenizer)
    sources = [ids.tolist() for ids in np.split(pairs.source.ids, pairs.source.ends[:-1])]
    order = sorted(range(len(texts)), key=lambda i: -len(sources[i]))
    size = min(rows, len(texts))
    found: dict[int, str] = {}
    for begin in range(0, len(order), size):
        here = order[begin : begin + size]
        filled = here + here[-1:] * (size - len(here))  # one shape: each is a program
        answers = beam_search(
            model,
            [sources[i] for i in filled],
            beams=beams,
            max_new_tokens=2 * bucket(len(sources[here[0]])) + 10,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            start=tokenizer.start,
            stop=(tokenizer.end,),  # pyright: ignore[reportArgumentType]
        )
        for i, (best, *_) in zip(here, answers.tokens, strict=False):
            found[i] = tokenizer.decode([id for id in best if id < tokenizer.vocab])
    return [found[i] for i in range(len(texts))]
