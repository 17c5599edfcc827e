"""Documents: anything to learn from, one by one, by their number; and documents of token ids."""

import abc
import array
import bisect
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from eqxformer.data.fingerprints import digest, digest_of_array
from eqxformer.data.mapped import Mapped, array_of

_ENCODE = "Give `lambda text: tokenizer.encode(text).ids` for a tokenizer of `tokenizers`."
_TEXTS = "Make them of texts with `tokenized(documents, encode)`."
_MOST = np.iinfo(np.int32).max  # ids are int32 in a batch


class Documents(abc.ABC):
    """So many documents, each to be had by its number, and a fingerprint of all of them.

    This is also what Grain takes as a source: `grain.MapDataset.source(documents)`.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> documents = ef.TokenDocuments(np.array([5, 6, 7, 8]), ends=np.array([3, 4]))
        >>> isinstance(documents, ef.Documents), [document.tolist() for document in documents]
        (True, [[5, 6, 7], [8]])
        >>> documents.where(1), len(documents.fingerprint)
        ('document 1 of tokens', 64)
    """

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many documents there are."""

    @abc.abstractmethod
    def __getitem__(self, number: int, /) -> Any:
        """The document of this number, from 0 on."""

    def __iter__(self) -> Iterator[Any]:
        """One document after the other, each read when it is its turn."""
        return (self[number] for number in range(len(self)))

    @abc.abstractmethod
    def where(self, number: int) -> str:
        """Where a document is from, in words for an error."""

    @abc.abstractmethod
    def digest(self) -> str:
        """SHA-256 of the content of all of them and of how it is read, computed anew."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """The `digest`, computed once."""
        return self.digest()


AnyDocuments = Sequence[Any] | Documents


class Joined(Documents):
    """The documents of several, one after the other."""

    def __init__(self, parts: Sequence[Documents]) -> None:
        self.parts = tuple(parts)
        self._ends = list(itertools.accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _place(self, number: int) -> tuple[Documents, int]:
        check_number(number, len(self))
        part = bisect.bisect_right(self._ends, number)
        return self.parts[part], number - (self._ends[part - 1] if part else 0)

    def __getitem__(self, number: int, /) -> Any:
        part, own = self._place(number)
        return part[own]

    def where(self, number: int) -> str:
        part, own = self._place(number)
        return part.where(own)

    def digest(self) -> str:
        return digest("joined", *(part.fingerprint for part in self.parts))


class TokenDocuments(Documents):
    """Documents of token ids that lie in one array, which may be a mapped file.

    Arguments:
        tokens: the ids of all documents.
        ends: for each document, where in `tokens` it ends and the next one begins.
        name: where they are from.

    A document is a part of `tokens`, not a copy. A mapped file is pickled as its name.

    Example:
        >>> import eqxformer as ef, numpy as np
        >>> documents = ef.TokenDocuments(np.array([5, 6, 7, 8]), ends=np.array([3, 4]))
        >>> len(documents), documents[0].tolist(), documents[1].tolist()
        (2, [5, 6, 7], [8])
    """

    def __init__(
        self,
        tokens: Integer[np.ndarray, " tokens"],
        ends: Int[np.ndarray, " documents"],
        *,
        name: str = "tokens",
    ) -> None:
        if tokens.dtype.kind not in "iu":
            raise ValueError(f"`tokens` must be whole numbers; got {tokens.dtype}.")
        last = int(ends[-1]) if len(ends) else 0
        if last != len(tokens) or (np.diff(ends, prepend=0) < 0).any():
            raise ValueError(
                f"`ends` must rise to the number of tokens, {len(tokens)}, which is where the last "
                f"document ends; the last is {last}."
            )
        self._tokens, self.ends, self.name = Mapped.of(tokens), ends, name

    @property
    def tokens(self) -> Integer[np.ndarray, " tokens"]:
        """The ids of all documents."""
        return array_of(self._tokens)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int, /) -> Integer[np.ndarray, " seq"]:
        check_number(number, len(self))
        start = int(self.ends[number - 1]) if number else 0
        return self.tokens[start : int(self.ends[number])]

    def where(self, number: int) -> str:
        return f"document {number} of {self.name}"

    def digest(self) -> str:
        return digest("tokens", digest_of_array(self.tokens), digest_of_array(self.ends))

    @property
    def lengths(self) -> Int[np.ndarray, " documents"]:
        """How many tokens each document has."""
        return np.diff(self.ends, prepend=0)


def tokenized(documents: AnyDocuments, encode: Callable[[Any], Any]) -> TokenDocuments:
    """The token ids of all documents, in memory: four bytes a token.

    Arguments:
        documents: what `open` of a source gives, or a list.
        encode: the ids of a document. It says what begins and ends a document, such as the id of
            an end that the model shall learn to predict.

    Raises `ValueError` that names the document, with its file and line, where `encode` fails or
    gives what are no ids.

    Example:
        >>> import eqxformer as ef
        >>> texts = ["hello", "hole"]
        >>> tokenizer = ef.Characters.of("".join(texts))
        >>> ef.tokenized(texts, tokenizer.encode)[1].tolist()
        [1, 3, 2, 0]
    """
    check_documents(documents)
    tokens, ends = array.array("i"), np.zeros(len(documents), np.int64)
    for number in range(len(documents)):
        try:
            given = encode(documents[number])
            ids = _ids(given, "`encode` must give a list of whole numbers", _ENCODE)
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(f"{_where(documents, number)} has no tokens: {error}") from error
        tokens.frombytes(ids.tobytes())
        ends[number] = len(tokens)
    return TokenDocuments(np.frombuffer(tokens, np.int32), ends)


def lengths_of(documents: AnyDocuments) -> Int[np.ndarray, " documents"]:
    """How many tokens each document has. Raises `ValueError` for documents that are not ids."""
    if isinstance(documents, TokenDocuments):
        return documents.lengths
    if isinstance(documents, Joined):
        return np.concatenate([lengths_of(part) for part in documents.parts])
    check_documents(documents)
    lengths = np.zeros(len(documents), np.int64)
    for number in range(len(documents)):
        try:
            lengths[number] = len(_ids(documents[number], "A document must be token ids", _TEXTS))
        except ValueError as error:
            raise ValueError(f"{_where(documents, number)} cannot be packed: {error}") from None
    return lengths


def check_documents(documents: Any) -> None:
    """Raises `TypeError` for what is no list of documents."""
    if isinstance(documents, str) or not hasattr(documents, "__len__"):
        raise TypeError(
            "`documents` must be a list, or what `open` of a source gives; got "
            f"{type(documents).__name__}. Write `JsonLines(...).open()`, or a list of one text."
        )


def check_number(number: int, count: int) -> None:
    """Raises `IndexError` for a document that is not there."""
    if not 0 <= number < count:
        raise IndexError(f"There are documents from 0 to {count - 1}; got {number}.")


def _where(documents: Any, number: int) -> str:
    return documents.where(number) if hasattr(documents, "where") else f"Document {number}"


def _ids(given: Any, wanted: str, hint: str) -> Int[np.ndarray, " seq"]:
    """Ids as int32. Raises `ValueError` for anything else."""
    ids = np.asarray(given)
    if not ids.size and ids.ndim == 1:
        return ids.astype(np.int32)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"{wanted}; got {type(given).__name__}. {hint}")
    if ids.min() < 0 or ids.max() > _MOST:
        raise ValueError(f"ids must be from 0 to {_MOST}; got {ids.min()} to {ids.max()}.")
    return ids.astype(np.int32)
