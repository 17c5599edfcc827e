"""The decoder of a tokenizer as stages that take one token at a time.

    tokens            ▁he   llo   <0xF0> <0x9F> <0x98> <0x80>   .
    Replace            he   llo   <0xF0> <0x9F> <0x98> <0x80>   .
    ByteFallback       he   llo                                 😀 .
    Strip             he    llo                                 😀 .

A stage gives what it is sure of, and at the end what is left. All of it, joined, is what the
library makes of all tokens at once; what a token adds to the inside of a text is its `part`.
"""

import abc
import codecs
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

KNOWN = (
    "ByteLevel, ByteFallback, Metaspace, WordPiece, BPEDecoder, Replace, Strip, Fuse, "
    "Sequences of these that treat each token by itself, and none"
)
_BYTE = re.compile("<0x([0-9A-Fa-f+][0-9A-Fa-f])>")


class Special(str):
    """A special token that is passed on as it is, since a string to stop at has it in it."""


class Stage(abc.ABC):
    """A step from tokens to text."""

    spaces = 0  # that are left out at the beginning of a text, however many tokens they are in

    @abc.abstractmethod
    def feed(self, token: str) -> list[str]:
        """What is sure after one more token."""

    def finish(self) -> list[str]:
        """What is left when no token follows."""
        return []

    def past(self, special: Special) -> list[str]:
        """What is sure where a special token stands: all before it, and itself."""
        return [*self.finish(), special]

    @abc.abstractmethod
    def part(self, token: str | bytes) -> str | bytes:
        """What a token adds inside of a text."""

    def begin(self, token: str | bytes) -> str | bytes:
        """What a token adds as the first of a text, with all of its spaces."""
        return self.part(token)


def stages_of(tokenizer: Any) -> list[Stage]:
    """The stages of a tokenizer's decoder, at their beginning."""
    decoder = tokenizer.decoder
    if decoder is None:
        return [Spaced()]
    try:
        specs = _flat(json.loads(decoder.__getstate__()))
    except Exception:  # a decoder written in Python has no JSON
        return [Whole(decoder, "of your own", fused=False)]
    stages, fused = [], False
    for place, spec in enumerate(specs):
        stage = _stage(spec, fused)
        if stage is None:
            rest = {"type": "Sequence", "decoders": specs[place:]}
            return [*stages, Whole(_library(rest), spec["type"], fused)]
        stages.append(stage)
        fused = fused or isinstance(stage, Fused | ByteLevel)
    return stages


def fed(stages: Sequence[Stage], tokens: Iterable[str]) -> list[str]:
    """The pieces of text that are sure after some more tokens, and special tokens among them."""
    pieces = list(tokens)
    for stage in stages:
        pieces = [out for piece in pieces for out in _step(stage, piece)]
    return pieces


def finished(stages: Sequence[Stage]) -> list[str]:
    """The pieces of text that are left when no token follows."""
    pieces: list[str] = []
    for stage in stages:
        pieces = [*(out for piece in pieces for out in _step(stage, piece)), *stage.finish()]
    return pieces


def _step(stage: Stage, piece: str) -> list[str]:
    return stage.past(piece) if isinstance(piece, Special) else stage.feed(piece)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of the special tokens, which are no text."""
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(number for number, token in added.items() if token.special)


def special_in(tokenizer: Any, strings: Iterable[str]) -> dict[int, Special]:
    """The special tokens that one of these strings is or contains, by their ids."""
    strings, added = tuple(strings), tokenizer.get_added_tokens_decoder()
    return {
        number: Special(token.content)
        for number, token in added.items()
        if token.special and token.content and any(token.content in each for each in strings)
    }


def unknown(kind: str) -> NotImplementedError:
    """What is raised where the bytes of a token depend on more than the token."""
    return NotImplementedError(
        f"The bytes of tokens are known for these decoders of tokenizers: {KNOWN}; got {kind}."
    )


class Spaced(Stage):
    """No decoder: tokens with a space between them."""

    def __init__(self) -> None:
        self.first = True

    def feed(self, token: str) -> list[str]:
        first, self.first = self.first, False
        return [token if first else " " + token]

    def part(self, token: str | bytes) -> str | bytes:
        return b" " + token if isinstance(token, bytes) else " " + token

    def begin(self, token: str | bytes) -> str | bytes:
        return token


class Each(Stage):
    """Replace, Strip, Metaspace, WordPiece: each token by itself; for two, the first is special."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.kind = spec["type"]
        self.decoder = _library(spec)
        self.first = self.kind in ("Metaspace", "WordPiece")
        self.before = [""] if self.first else []  # a first token that adds nothing
        self.known: dict[str, str] = {}

    def feed(self, token: str) -> list[str]:
        if self.first:
            self.first = False
            return [self.decoder.decode([token])]
        return [self._later(token)]

    def part(self, token: str | bytes) -> str | bytes:
        if isinstance(token, str):
            return self._later(token)
        if self.kind in ("Replace", "Metaspace"):  # a lone byte is no sign they look for
            return token
        raise unknown(f"{self.kind} after ByteFallback")

    def begin(self, token: str | bytes) -> str | bytes:
        return self.decoder.decode([token]) if isinstance(token, str) else self.part(token)

    def _later(self, token: str) -> str:
        if token not in self.known:
            self.known[token] = self.decoder.decode([*self.before, token])
        return self.known[token]


class ByteLevel(Stage):
    """Every letter of a token stands for a byte."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: str) -> list[str]:
        return [self.decoder.decode(_bytes_of(token))]

    def finish(self) -> list[str]:
        return [self.decoder.decode(b"", True)]

    def part(self, token: str | bytes) -> str | bytes:
        if isinstance(token, bytes):
            raise unknown("ByteLevel after ByteFallback")
        return _bytes_of(token)


class ByteFallback(Stage):
    """Some tokens are bytes; a run of them is a text, or one sign of replacement for each.

    So nothing of a run is sure before it ends.
    """

    def __init__(self) -> None:
        self.run = bytearray()

    def feed(self, token: str) -> list[str]:
        found = _BYTE.fullmatch(token)
        if found is None:
            return [*self.finish(), token]
        self.run.append(int(found[1], 16))
        return []

    def finish(self) -> list[str]:
        run, self.run = bytes(self.run), bytearray()
        try:
            return [run.decode()] if run else []
        except UnicodeDecodeError:
            return ["\ufffd"] * len(run)

    def part(self, token: str | bytes) -> str | bytes:
        found = _BYTE.fullmatch(token) if isinstance(token, str) else None
        return bytes([int(found[1], 16)]) if found else token


class Fused(Stage):
    """The pieces are one text from here on."""

    def feed(self, token: str) -> list[str]:
        return [token]

    def part(self, token: str | bytes) -> str | bytes:
        return token


class StripBegin(Stage):
    """The text without so many of a letter at its beginning."""

    def __init__(self, letter: str, count: int) -> None:
        self.letter, self.left = letter, count
        self.spaces = count if letter == " " else 0

    def feed(self, token: str) -> list[str]:
        if not self.left or not token:
            return [token]
        same = len(token) - len(token.lstrip(self.letter))
        cut = min(self.left, same)
        self.left = self.left - cut if same == len(token) else 0
        return [token[cut:]]

    def part(self, token: str | bytes) -> str | bytes:
        return token


class WordEnd(Stage):
    """BPEDecoder: a sign for the end of a word is a space, and nothing in the last token."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.sign = spec["suffix"]
        self.decoder = _library(spec)
        self.held: list[str] = []

    def feed(self, token: str) -> list[str]:
        ready, self.held = self.held, [token]
        return [self.part(each) for each in ready]  # pyright: ignore[reportReturnType]

    def past(self, special: Special) -> list[str]:
        ready, self.held = self.held, []
        return [*(self.part(each) for each in ready), special]  # pyright: ignore[reportReturnType]

    def finish(self) -> list[str]:
        return [self.decoder.decode(self.held)]

    def part(self, token: str | bytes) -> str | bytes:
        if isinstance(token, bytes):
            raise unknown("BPEDecoder after ByteFallback")
        return token.replace(self.sign, " ")


class Whole(Stage):
    """Anything else: nothing is sure before the end."""

    def __init__(self, decoder: Any, kind: str, fused: bool) -> None:
        self.decoder, self.kind, self.fused = decoder, kind, fused
        self.tokens: list[str] = []

    def feed(self, token: str) -> list[str]:
        self.tokens.append(token)
        return []

    def past(self, special: Special) -> list[str]:
        return []  # it would be before a text that is sure at the end only

    def finish(self) -> list[str]:
        tokens = ["".join(self.tokens)] if self.fused else self.tokens
        return [self.decoder.decode(tokens)]

    def part(self, token: str | bytes) -> str | bytes:
        raise unknown(f"{self.kind} after others" if self.fused else self.kind)


def _stage(spec: dict[str, Any], fused: bool) -> Stage | None:
    """The stage that a decoder's settings describe; None where it must see everything at once."""
    kind = spec["type"]
    if kind == "Fuse":
        return Fused()
    if fused:
        begins = kind == "Strip" and spec["stop"] == 0
        return StripBegin(spec["content"], spec["start"]) if begins else None
    if kind in ("Replace", "Strip", "Metaspace", "WordPiece"):
        return Each(spec)
    if kind == "BPEDecoder":
        return WordEnd(spec)
    plain = {"ByteLevel": ByteLevel, "ByteFallback": ByteFallback}
    return plain[kind]() if kind in plain else None


def _flat(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The decoders of a sequence, also of sequences in it, in their order."""
    if spec["type"] != "Sequence":
        return [spec]
    return [inner for each in spec["decoders"] for inner in _flat(each)]


def _library(spec: dict[str, Any]) -> Any:
    """The library's own decoder of these settings."""
    from tokenizers import Tokenizer

    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    around = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor"))
    text = {"version": "1.0", "added_tokens": [], "model": model, "decoder": spec, **around}
    return Tokenizer.from_str(json.dumps(text)).decoder


def _letters() -> dict[str, int]:
    """The letter that stands for each byte: itself where it can be seen, else one from 256 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): b for i, b in enumerate(unseen)}


_LETTERS = _letters()


def _bytes_of(token: str) -> bytes:
    """The bytes that a token's letters stand for; those of a token with other letters, as UTF-8."""
    try:
        return bytes([_LETTERS[letter] for letter in token])
    except KeyError:
        return token.encode()
