"""Text to learn from: the one that comes with Python, or any UTF-8 file, and its split."""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

VALIDATION_SHARE = 0.1


class Corpus(NamedTuple):
    """A text and where it is from."""

    name: str
    text: str

    def split(self) -> tuple[str, str]:
        """What to train on and what to validate with: the last tenth."""
        cut = len(self.text) - int(len(self.text) * VALIDATION_SHARE)
        return self.text[:cut], self.text[cut:]

    def fingerprint(self) -> str:
        """SHA-256 of the text, by which two runs show that they read the same."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()


def read_corpus(path: Path | None) -> Corpus:
    """The text in a file, or the default corpus; `ValueError` where that is nothing to learn."""
    corpus = default_corpus() if path is None else Corpus(path.name, read_text(path))
    if len(set(corpus.text)) < 2:
        what = f"only {corpus.text[0]!r}" if corpus.text else "no text"
        raise ValueError(f"`{path}` holds {what}; a corpus needs at least two characters to tell.")
    return corpus


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, line ends as newlines. `ValueError` says what is wrong with it."""
    if path.is_dir():
        raise ValueError(f"`{path}` is a directory; name a text file.")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"There is no file `{path}`; name a text file that exists.") from None
    except OSError as error:
        raise ValueError(f"`{path}` cannot be read: {error.strerror}.") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`{path}` is not UTF-8 text: byte {data[error.start]:#04x} at position {error.start}. "
            "Convert it to UTF-8 first."
        ) from None
    if "\0" in text:
        raise ValueError(f"`{path}` is a binary file: it has zero bytes. Name a text file.")
    return text.replace("\r\n", "\n")


def default_corpus() -> Corpus:
    """The help topics of Python's own `pydoc`: some 400,000 characters of prose and code.

    Every CPython carries them. Topics stand in the order of their names, and each paragraph once:
    they quote one another, and a validation text that was also trained on would measure memory.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError(
            "This Python comes without `pydoc_data`, the default corpus; "
            "name a text file with --data FILE."
        ) from None
    seen: dict[str, None] = {}
    for name in sorted(topics):
        seen |= dict.fromkeys(re.split(r"\n\s*\n", topics[name].strip()))
    return Corpus("pydoc_data.topics", "\n\n".join(seen) + "\n")
