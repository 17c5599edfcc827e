"""What every tokenizer offers, and how one is read back from the JSON that it wrote."""

import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from eqxformer.config import Config
from eqxformer.data.characters import Characters
from eqxformer.data.subwords import Subwords


class Tokenizer(Protocol):
    """Between text and ids: `Characters`, `Subwords`, or one of your own.

    `vocab` is the number of ids. `padding`, `start`, `end` and `unknown` are ids with a meaning of
    their own, None where there is none; `decode` leaves them out.
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

    def encode(self, text: str) -> Int[np.ndarray, " seq"]: ...

    def decode(self, ids: Int[np.ndarray, " seq"] | list[int]) -> str: ...

    def to_json(self) -> str: ...


def tokenizer_of(values: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer whose `to_json` gave these values.

    A config, such as `Characters`, names its type; anything else is what the package tokenizers
    writes. Raises `ValueError` for values that are neither.
    """
    if "type" not in values:
        return Subwords.from_json(json.dumps(values))
    found = Config.from_dict(values)
    if not isinstance(found, Characters):
        raise ValueError(f"A tokenizer must be `Characters` or of tokenizers; got {found}.")
    return found


def encoded(tokenizer: Tokenizer, texts: list[str]) -> list[Int[np.ndarray, " seq"]]:
    """The ids of every text; at once, where the tokenizer can."""
    at_once = getattr(tokenizer, "encode_all", None)
    return at_once(texts) if at_once is not None else [tokenizer.encode(text) for text in texts]
