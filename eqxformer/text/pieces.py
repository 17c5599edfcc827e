"""Text while it is made: pieces of it that are sure, from ids as they come."""

from collections.abc import Iterable
from itertools import compress, groupby
from typing import Any

import numpy as np

from eqxformer.text._automaton import Search, strings_given
from eqxformer.text._decoding import (
    Special,
    fed,
    finished,
    special_ids,
    special_in,
    stages_of,
)


class TextPieces:
    """Text from the ids of one row as they come: all pieces, joined, are what `decode` gives.

    That is `tokenizer.decode(ids, skip_special_tokens=True)`, to the letter. A piece never holds
    part of a character, nor what may still change: with byte fallback, a run of bytes waits for its
    end. The time is linear in the text. A decoder that must see all tokens at once, such as CTC,
    gives everything at the end.

    With strings to stop at, the text ends before the first that is complete (`text_before`), and
    what may be the beginning of one is held back until it is not. Special tokens are no text, but
    one that such a string is or contains counts where it stands, unless the decoder must see all
    tokens at once.

    Arguments:
        tokenizer: a `tokenizers.Tokenizer`, such as `load_tokenizer` gives.
        stop: a string to stop at, or several.
        prompt: an id or several that the row begins with. The pieces then go on after their text,
            so that a space before the first word is there; without a prompt `decode` leaves it out.

    Raises `ValueError` for an empty string, and for ids that are no whole numbers from 0
    to 2**32 - 1.

    Example:
        >>> import eqxformer as ef
        >>> from tokenizers import Tokenizer, decoders, models
        >>> tokenizer = Tokenizer(models.BPE({"Ġa": 0, "ðŁ": 1, "ĺĢ": 2, ".": 3}, []))
        >>> tokenizer.decoder = decoders.ByteLevel()
        >>> pieces = ef.TextPieces(tokenizer, stop="..")
        >>> [pieces.feed(token) for token in (0, 1, 2, 3, 0, 3, 3)], pieces.stopped
        ([' a', '', '😀', '', '. a', '', ''], True)
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        stop: str | Iterable[str] = (),
        prompt: Any = (),
    ) -> None:
        strings = strings_given(stop, "stop")
        self.stopped = False
        self._token = tokenizer.id_to_token
        self._special = special_ids(tokenizer)
        self._stages = stages_of(tokenizer)
        self._search = Search([string.encode() for string in strings]) if strings else None
        self._held, self._shown = b"", b""  # and which of what is held back is text
        self._finished = False
        self._named: dict[int, Special] = {}
        given = _numbers(prompt)
        sure = "".join(fed(self._stages, self._tokens(given)))
        self._named = special_in(tokenizer, strings)
        whole = tokenizer.decode(given, skip_special_tokens=True) if given else ""
        # An unfinished character at the end of the prompt belongs to what comes.
        self._skip = max(0, len(whole.rstrip("\ufffd")) - len(sure))

    def feed(self, ids: Any) -> str:
        """The text that is sure after an id more, or several, and was not before.

        After a stop it is empty. Raises `ValueError` after `finish()`.
        """
        if self._finished:
            raise ValueError("The text is finished; begin another `TextPieces` for another row.")
        numbers = _numbers(ids)
        return "" if self.stopped else self._given(fed(self._stages, self._tokens(numbers)))

    def finish(self) -> str:
        """The text that is left when no id follows, with signs of replacement for a broken end."""
        if self._finished or self.stopped:
            return ""
        self._finished = True
        text = self._given(finished(self._stages))
        return text if self.stopped else text + self._released(len(self._held))

    def _tokens(self, ids: Iterable[int]) -> Iterable[str]:
        """The tokens of ids; special ones and those outside of the vocabulary are no text."""
        for number in ids:
            if number in self._named:
                yield self._named[number]
            elif number not in self._special and (token := self._token(number)) is not None:
                yield token

    def _given(self, pieces: Iterable[str]) -> str:
        """What may be given of some new text, without what the prompt has said already."""
        given = ""
        for special, some in groupby(pieces, key=lambda piece: isinstance(piece, Special)):
            text = "".join(some)
            if not special:
                skipped = min(self._skip, len(text))
                self._skip -= skipped
                text = text[skipped:]
            if self._search is None:
                given += text
            elif not self.stopped:
                given += self._searched(text.encode(), special)
        return given

    def _searched(self, new: bytes, special: bool) -> str:
        """What may be given when some more bytes have come, of text or of special tokens."""
        found = self._search.feed(new)  # pyright: ignore[reportOptionalMemberAccess]
        self.stopped = found is not None
        self._held += new
        self._shown += bytes([not special]) * len(new)
        # A string begins with a whole character, so no cut is within one.
        kept = len(new) - found[0] + found[1] if found else self._search.held  # pyright: ignore[reportOptionalMemberAccess]
        return self._released(len(self._held) - kept)

    def _released(self, count: int) -> str:
        """So many of the bytes that were held back, as text."""
        text = bytes(compress(self._held[:count], self._shown))
        self._held, self._shown = self._held[count:], self._shown[count:]
        return text.decode()


def _numbers(ids: Any) -> list[int]:
    """Ids as a list of numbers."""
    array = np.asarray(ids)
    if array.ndim > 1:
        raise ValueError(f"`TextPieces` takes the ids of one row; got shape {array.shape}.")
    whole = array.size == 0 or array.dtype.kind in "iu"
    if not whole or (array.size and not 0 <= array.min() <= array.max() < 2**32):
        raise ValueError(f"Ids must be whole numbers from 0 to 2**32 - 1; got {ids!r}.")
    return array.reshape(-1).tolist()
