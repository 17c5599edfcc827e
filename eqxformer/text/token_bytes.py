"""The bytes that each token of a vocabulary adds to a text."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from eqxformer.text._decoding import Stage, special_ids, special_in, stages_of

Place = Literal["inside", "beginning"]
_Part = str | bytes


class Spelled(NamedTuple):
    """What ids add to a text, of which some is left out at its beginning.

    Arguments:
        inside: the bytes of each id inside of a text, None for one that is no text.
        first: the same of one that is the first of a text.
        spaces: how many spaces a text loses at its beginning, in however many tokens they are.
        special: the bytes of special tokens, where they count though they are no text.
    """

    inside: Sequence[bytes | None]
    first: Sequence[bytes | None]
    spaces: int = 0
    special: Mapping[int, bytes] = {}


def token_bytes(tokenizer: Any) -> tuple[bytes | None, ...]:
    """What each id of a `tokenizers.Tokenizer` adds to a text: `bytes`, or None for no text.

    None stands for special tokens, which `decode` leaves out, and for holes in the vocabulary. What
    a token adds follows from the tokenizer's own decoder: byte-level (GPT-2, Llama 3, Qwen),
    sentencepiece's (with or without bytes such as `<0x0A>`), WordPiece's, or any of their steps.

    The bytes of ids, joined, are `tokenizer.decode(ids)`, but for three things. A token is taken
    as one inside a text: at the beginning, `decode` leaves out the space before a word. At the end,
    a decoder with a sign for the end of a word leaves out the space after it. Bytes that are no
    UTF-8 become signs of replacement, of which each decoder has its own number.

    Arguments:
        tokenizer: a `tokenizers.Tokenizer`, such as `load_tokenizer` gives.

    Raises `NotImplementedError` for a decoder under which a token's bytes depend on others.

    Example:
        >>> import eqxformer as ef
        >>> from tokenizers import Tokenizer, decoders, models
        >>> tokenizer = Tokenizer(models.BPE({"a": 0, "<0xF0>": 1, "▁b": 2}, []))
        >>> tokenizer.decoder = decoders.Sequence(
        ...     [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        ... )
        >>> ef.token_bytes(tokenizer)
        (b'a', b'\\xf0', b' b')
    """
    return _each(tokenizer, lambda stage, part: stage.part(part))


def spelled(tokenizer: Any, place: Place) -> Spelled:
    """What the ids of a tokenizer add to a text of which new tokens are the inside or all."""
    inside = token_bytes(tokenizer)
    if place == "inside":
        return Spelled(inside, inside)
    first = _each(tokenizer, lambda stage, part: stage.begin(part))
    return Spelled(inside, first, sum(stage.spaces for stage in stages_of(tokenizer)))


def with_special(parts: Spelled, tokenizer: Any, strings: Iterable[str]) -> Spelled:
    """What ids add, the special tokens in one of the strings among them."""
    found = special_in(tokenizer, strings)
    return parts._replace(special={number: token.encode() for number, token in found.items()})


def _each(tokenizer: Any, after: Callable[[Stage, _Part], _Part]) -> tuple[bytes | None, ...]:
    """The bytes of each id, given what a stage makes of what it gets of a token."""
    stages, special = stages_of(tokenizer), special_ids(tokenizer)
    known = tokenizer.get_vocab(with_added_tokens=True)
    found: list[bytes | None] = [None] * (max(known.values(), default=-1) + 1)
    for number in set(known.values()) - special:
        part: _Part = tokenizer.id_to_token(number)
        for stage in stages:
            part = after(stage, part)
        found[number] = part if isinstance(part, bytes) else part.encode()
    return tuple(found)
