"""What every tokenizer offers, and how one is read back from the JSON that it wrote."""

import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from eqxformer.config import Config
from eqxformer.data.subwords import Subwords


class Tokenizer(Protocol):
    """Between text and ids: `Characters`, `Subwords`, or one of your own.

    `vocab` is the number of ids. `padding`, `start`, `end` and `unknown` are ids with a meaning of
    their own, None where there is none; `decode` leaves them out.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> class Letters(ef.Config):
        ...     vocab, padding, start, end, unknown = 26, None, None, None, None
        ...     def encode(self, text):
        ...         return np.array([ord(letter) - ord("a") for letter in text], np.int32)
        ...     def decode(self, ids):
        ...         return "".join(chr(ord("a") + i) for i in ids)
        >>> ef.tokenized(["hello"], Letters().encode)[0].tolist(), Letters().decode([7, 8])
        ([7, 4, 11, 11, 14], 'hi')
    """

    @property
    def vocab(self) -> int: ...

    @property
    def padding(self) -> int | None: ...

    @property
    def start(self) -> int | None: ...

    @property
    def end(self) -> int | None: ...

    @property
    def unknown(self) -> int | None: ...

    def encode(self, text: str) -> Int[np.ndarray, " seq"]:
        """The ids of a text, without special ones."""
        ...

    def decode(self, ids: Int[np.ndarray, " seq"] | list[int]) -> str:
        """The text of some ids, special ones left out; `ValueError` for those outside `vocab`."""
        ...

    def to_json(self) -> str:
        """All of it as a JSON object, from which `tokenizer_of` makes it again."""
        ...


def tokenizer_of(values: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer whose `to_json` gave these values.

    A config, such as `Characters` or one of your own, names its type; anything else is what the
    package tokenizers writes. Raises `ValueError` for values that are neither.
    """
    if "type" not in values:
        return Subwords.from_json(json.dumps(values))
    found: Any = Config.from_dict(values)
    if not all(callable(getattr(found, name, None)) for name in ("encode", "decode")):
        raise ValueError(f"A tokenizer must have `encode` and `decode`; {found.type_name} has not.")
    return found


def encoded(tokenizer: Tokenizer, texts: list[str]) -> list[Int[np.ndarray, "_"]]:
    """The ids of every text; at once, where the tokenizer can."""
    at_once = getattr(tokenizer, "encode_all", None)
    return at_once(texts) if at_once is not None else [tokenizer.encode(text) for text in texts]
