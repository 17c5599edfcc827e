"""Pieces of words as tokens: vocabularies learned from text by the package tokenizers.

`ByteLevelBPE`, `WordBPE` and `Unigram` are ways to learn one; `train` gives a `Subwords`. They need
`pip install 'eqxformer[hub]'`.
"""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from eqxformer.config import Config

# Padding is no end: a model that is never asked for padding still learns where texts end.
PADDING, START, END, UNKNOWN = SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")


@dataclasses.dataclass(frozen=True)
class Subwords:
    """A tokenizer of the package tokenizers; `json` is the whole of it.

    `train` of `ByteLevelBPE`, `WordBPE` or `Unigram` makes one, `read` takes any `tokenizer.json`.
    Special tokens are never found in a text: `"</s>"` is encoded as the letters that it has.

    Example:
        >>> import eqxformer as ef
        >>> texts = ["low lower lowest", "new newer newest"]
        >>> tokenizer = ef.WordBPE(vocab=30).train(texts)
        >>> tokenizer.decode(tokenizer.encode("newest low"))
        'newest low'
        >>> tokenizer.padding, tokenizer.start, tokenizer.end, tokenizer.unknown
        (0, 1, 2, 3)
    """

    json: str

    @classmethod
    def from_json(cls, text: str) -> "Subwords":
        """The tokenizer that `to_json`, or the package tokenizers, wrote."""
        made = cls(text)
        _ = made.tokenizer  # says what is wrong with it now
        return made

    @classmethod
    def read(cls, path: str | Path) -> "Subwords":
        """The tokenizer in a `tokenizer.json`."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"`{path}` cannot be read as a tokenizer: {error}.") from None

    def to_json(self) -> str:
        """What `from_json` reads; as a file, the `tokenizer.json` of the package tokenizers."""
        return self.json

    def save(self, path: str | Path) -> None:
        """Writes a `tokenizer.json`, which `read` and the package tokenizers read."""
        Path(path).write_text(self.json + "\n", encoding="utf-8")

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer`."""
        package = library()
        try:
            made = package.Tokenizer.from_str(self.json)
        except Exception as error:  # tokenizers raises plain Exceptions
            raise ValueError(f"This is no tokenizer of the package tokenizers: {error}.") from None
        made.encode_special_tokens = True
        made.no_truncation()
        made.no_padding()
        return made

    @property
    def vocab(self) -> int:
        """How many ids there are: one more than the largest."""
        return self._size

    @functools.cached_property
    def _size(self) -> int:
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def padding(self) -> int | None:
        """The id of `<pad>`."""
        return self.tokenizer.token_to_id(PADDING)

    @property
    def start(self) -> int | None:
        """The id of `<s>`."""
        return self.tokenizer.token_to_id(START)

    @property
    def end(self) -> int | None:
        """The id of `</s>`."""
        return self.tokenizer.token_to_id(END)

    @property
    def unknown(self) -> int | None:
        """The id of `<unk>`, which stands for what the vocabulary has no token for."""
        return self.tokenizer.token_to_id(UNKNOWN)

    def encode(self, text: str) -> Int[np.ndarray, " seq"]:
        """The ids of a text, without special tokens."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: list[str]) -> list[Int[np.ndarray, "_"]]:
        """The ids of every text, on all cores."""
        found = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(each.ids, np.int32) for each in found]

    def decode(self, ids: Int[np.ndarray, " seq"] | list[int]) -> str:
        """The text of some ids, special ones left out.

        Raises `ValueError` for an id outside the vocabulary.
        """
        ids = np.asarray(ids, dtype=np.int64)
        wrong = ids[(ids < 0) | (ids >= self.vocab)]
        if wrong.size:
            raise ValueError(f"`ids` must be from 0 to {self.vocab - 1}; got {wrong[0]}.")
        return self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)


class SubwordTraining(Config):
    """How a vocabulary of pieces of words is learned from texts.

    Arguments:
        vocab: how many ids there are at most, the four special ones among them.

    `exact` says whether the same texts give the same vocabulary every time.
    """

    exact: ClassVar[bool] = True

    vocab: int

    def check(self) -> None:
        if self.vocab < 1:
            raise ValueError(f"`vocab` must be positive; got {self.vocab}.")

    def train(self, texts: Iterable[str]) -> Subwords:
        """The tokenizer of these texts. Raises `ValueError` where `vocab` is too small for them."""
        texts = [text for text in texts if text]
        if not texts:
            raise ValueError("There is no text to learn a vocabulary from.")
        made = self.learned(texts)
        _check_holds(self.vocab, made.get_vocab_size(with_added_tokens=True))
        return Subwords(made.to_str())

    def learned(self, texts: list[str]) -> Any:
        """The `tokenizers.Tokenizer` of these texts."""
        raise NotImplementedError(f"{self.type_name} must say how a vocabulary is learned.")


class ByteLevelBPE(SubwordTraining):
    """Pairs of neighbours merged, the most frequent first, beginning with bytes (GPT-2).

    Any text comes back exactly as it was: Sennrich et al. 2016 over bytes, Radford et al. 2019.

    Example:
        >>> import eqxformer as ef
        >>> tokenizer = ef.ByteLevelBPE(vocab=270).train(["to be or not to be"] * 9)
        >>> tokenizer.decode(tokenizer.encode("not  日本"))
        'not  日本'
    """

    def learned(self, texts: list[str]) -> Any:
        """The `tokenizers.Tokenizer` of these texts."""
        package = library()
        made = _over_bytes(package, package.models.BPE())
        made.train_from_iterator(texts, package.trainers.BpeTrainer(**_options(package, self)))
        return made


class Unigram(SubwordTraining):
    """The likeliest pieces under a model of independent ones, over bytes (Kudo 2018).

    Any text comes back exactly as it was. Learning takes some twenty times as long as BPE, and two
    times are equal up to rounding only: keep the tokenizer, not the texts.

    Arguments:
        vocab: how many ids there are at most, the four special ones, the 256 bytes and a piece of
            several bytes among them: 261 or more.

    Example:
        >>> import eqxformer as ef
        >>> tokenizer = ef.Unigram(vocab=270).train(["to be or not to be"] * 9)
        >>> tokenizer.decode(tokenizer.encode("not to be"))
        'not to be'
    """

    exact: ClassVar[bool] = False

    def learned(self, texts: list[str]) -> Any:
        """The `tokenizers.Tokenizer` of these texts."""
        package = library()
        made, options = _over_bytes(package, package.models.Unigram()), _options(package, self)
        # With fewer, tokenizers raises a plain Exception that does not say how many it needs. With
        # none beside the bytes and special tokens, it takes all pieces there are instead of none.
        least = len(options["initial_alphabet"]) + len(SPECIALS) + 1
        _check_holds(self.vocab, least, "every byte, one piece of several")
        trainer = package.trainers.UnigramTrainer(
            **options, unk_token=UNKNOWN, shrinking_factor=0.75
        )
        made.train_from_iterator(texts, trainer)
        return made


class WordBPE(SubwordTraining):
    """Pairs of neighbours merged within words, beginning with characters (Sennrich et al. 2016).

    For text whose words stand between spaces. A token that begins a word begins with "▁", as in
    sentencepiece, so that `decode` gives back words and spaces exactly; "▁" itself becomes a space,
    and a character that the texts do not have becomes `unknown`.

    Example:
        >>> import eqxformer as ef
        >>> tokenizer = ef.WordBPE(vocab=30).train(["a man rides a bike ."] * 9)
        >>> tokenizer.tokenizer.encode("a man").tokens
        ['▁a', '▁man']
    """

    def learned(self, texts: list[str]) -> Any:
        """The `tokenizers.Tokenizer` of these texts."""
        package = library()
        made = package.Tokenizer(package.models.BPE(unk_token=UNKNOWN))
        made.pre_tokenizer = package.pre_tokenizers.Metaspace()
        made.decoder = package.decoders.Metaspace()
        options = {**_options(package, self), "initial_alphabet": []}
        made.train_from_iterator(texts, package.trainers.BpeTrainer(**options))
        return made


def _check_holds(vocab: int, least: int, held: str = "every character of the texts") -> None:
    """Raises `ValueError` for a vocabulary too small for what it must hold and special tokens."""
    if vocab < least:
        raise ValueError(
            f"`vocab` must be at least {least}, for {held} and {len(SPECIALS)} special tokens; "
            f"got {vocab}."
        )


def _over_bytes(package: Any, model: Any) -> Any:
    """A tokenizer of bytes, each written as a letter."""
    made = package.Tokenizer(model)
    made.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = package.decoders.ByteLevel()
    return made


def _options(package: Any, training: SubwordTraining) -> dict[str, Any]:
    return {
        "vocab_size": training.vocab,
        "special_tokens": list(SPECIALS),
        "initial_alphabet": sorted(package.pre_tokenizers.ByteLevel.alphabet()),
        "show_progress": False,
    }


def library() -> Any:
    """The package tokenizers. Raises `ImportError` that says how to get it."""
    try:
        import tokenizers
    except ImportError:
        raise ImportError(
            "Tokenizers of this kind need tokenizers: pip install 'eqxformer[hub]'."
        ) from None
    return tokenizers
