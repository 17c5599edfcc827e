"""Characters as tokens: every distinct character of a text is an id."""

from typing import Any

import numpy as np
from jaxtyping import Int

from eqxformer.config import Config
from eqxformer.data.subwords import library


class Characters(Config):
    """A tokenizer whose vocabulary is an alphabet: id `i` is its `i`-th character.

    `to_json` and `from_json` write and read it; `tokenizer` is the same for other libraries.

    Example:
        >>> import eqxformer as ef
        >>> tokenizer = ef.Characters.of("hello")
        >>> tokenizer.alphabet, tokenizer.encode("hole").tolist()
        ('ehlo', [1, 3, 2, 0])
        >>> tokenizer.decode([1, 0, 2, 3])
        'helo'
    """

    alphabet: str

    @classmethod
    def of(cls, text: str) -> "Characters":
        """The tokenizer of all characters in `text`, in the order of their code points."""
        return cls("".join(sorted(set(text))))

    def check(self) -> None:
        if not self.alphabet or list(self.alphabet) != sorted(set(self.alphabet)):
            raise ValueError(
                f"`alphabet` must hold distinct characters in the order of their code points; "
                f"got {self.alphabet!r}. `Characters.of(text)` makes one."
            )

    @property
    def vocab(self) -> int:
        """How many ids there are."""
        return len(self.alphabet)

    @property
    def padding(self) -> None:
        """There is no id for padding, nor for start, end and unknown characters."""
        return None

    start = end = unknown = padding

    @property
    def tokenizer(self) -> Any:
        """The same as a `tokenizers.Tokenizer`, which refuses other characters, too.

        Needs the package tokenizers, which the extra `hub` brings.

        Example:
            >>> import eqxformer as ef
            >>> ef.Characters.of("hello").tokenizer.encode("hole").ids
            [1, 3, 2, 0]
        """
        package = library()
        words = {letter: number for number, letter in enumerate(self.alphabet)}
        made = package.Tokenizer(package.models.WordLevel(words))
        each = package.Regex(r"[\s\S]")  # a new line, too
        made.pre_tokenizer = package.pre_tokenizers.Split(each, "isolated")
        made.decoder = package.decoders.Fuse()
        return made

    def encode(self, text: str) -> Int[np.ndarray, " seq"]:
        """The ids of a text. Raises `ValueError` that lists the characters without one."""
        points, known = _code_points(text), _code_points(self.alphabet)
        ids = np.searchsorted(known, points)
        strange = known[np.minimum(ids, len(known) - 1)] != points
        if strange.any():
            names = sorted({chr(point) for point in points[strange]})
            shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
            raise ValueError(
                f"The text has characters outside the alphabet: {shown}. "
                f"The alphabet is {self.alphabet!r}."
            )
        return ids.astype(np.int32)

    def decode(self, ids: Int[np.ndarray, " seq"] | list[int]) -> str:
        """The text of some ids. Raises `ValueError` for an id outside the vocabulary."""
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and not (ids.min() >= 0 and ids.max() < self.vocab):
            wrong = ids[(ids < 0) | (ids >= self.vocab)][0]
            raise ValueError(f"`ids` must be from 0 to {self.vocab - 1}; got {wrong}.")
        return "".join(self.alphabet[i] for i in ids)


def _code_points(text: str) -> Int[np.ndarray, " seq"]:
    # "surrogatepass", since an undecodable byte of a command line becomes a lone surrogate.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int64)
