"""Text to learn from: the one that comes with Python, or any UTF-8 files, and its split."""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from eqxformer.data.sources import JsonLines, TextFiles, read_text

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
    """The text in a file or directory, or the default one; `ValueError` for nothing to learn."""
    corpus = default_corpus() if path is None else Corpus(path.absolute().name, _text(path))
    if len(set(corpus.text)) < 2:
        what = f"only {corpus.text[0]!r}" if corpus.text else "no text"
        raise ValueError(f"`{path}` holds {what}; a corpus needs at least two characters to tell.")
    return corpus


def _text(path: Path) -> str:
    """A file's text, or those of a directory's `.txt` files or of a `.jsonl` file's lines."""
    if not path.is_dir() and path.suffix != ".jsonl":
        return read_text(path)
    source = TextFiles(str(path)) if path.is_dir() else JsonLines(str(path))
    texts = list(source.open())
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`{path}` holds token ids for `text`; name a file of texts.")
    return "\n\n".join(text.strip("\n") for text in texts) + "\n"


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
