"""The bytes that each token of a vocabulary adds to a text."""

from collections.abc import Iterable, Sequence
from typing import Any

from eqxformer.text._decoding import special_ids, special_in, stages_of


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
    stages, special = stages_of(tokenizer), special_ids(tokenizer)
    known = tokenizer.get_vocab(with_added_tokens=True)
    found: list[bytes | None] = [None] * (max(known.values(), default=-1) + 1)
    for number in set(known.values()) - special:
        part: str | bytes = tokenizer.id_to_token(number)
        for stage in stages:
            part = stage.part(part)
        found[number] = part if isinstance(part, bytes) else part.encode()
    return tuple(found)


def with_special(
    parts: Sequence[bytes | None], tokenizer: Any, strings: Iterable[str]
) -> Sequence[bytes | None]:
    """The bytes of each id, those of the special tokens in one of the strings among them.

    Arguments:
        parts: the bytes of each id of the tokenizer, as `token_bytes` gives them.
    """
    special = special_in(tokenizer, strings)
    if not special:
        return parts
    return tuple(
        special[number].encode() if number in special else part for number, part in enumerate(parts)
    )
