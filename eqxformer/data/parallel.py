"""Parallel text: two files whose lines are translations of each other, or one with both."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

from eqxformer.config import Config
from eqxformer.data.corpus import read_text

KEPT_BACK = 20  # of a single file, one pair in so many is validated with, and one is tested with


class ParallelText(NamedTuple):
    """Texts and their translations, line by line.

    Arguments:
        source, target: the lines of each side, as many of one as of the other.

    Example:
        >>> import eqxformer as ef
        >>> text = ef.ParallelText(("a dog", "a cat"), ("ein hund", "eine katze"))
        >>> len(text.source), len(text.fingerprint())
        (2, 64)
    """

    source: tuple[str, ...]
    target: tuple[str, ...]

    def fingerprint(self) -> str:
        """SHA-256 of both sides, by which two runs show that they read the same."""
        lines = "\n".join([*self.source, "", *self.target])
        return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()


class Splits(NamedTuple):
    """What is learned from, what is validated with now and then, and what is tested with."""

    train: ParallelText
    valid: ParallelText
    test: ParallelText


class ParallelFiles(Config):
    """The languages and the files of a directory: `train.en` and `train.de`, and so on.

    Instead of two files there may be one: `train.tsv` with a tab between the two texts of a line,
    or `train.jsonl` with an object per line, `{"en": "...", "de": "..."}`, also inside a
    "translation". `read` takes a single such file too, without a directory, and keeps its last
    tenth back: half of that to validate, half to test with.

    Arguments:
        source, target: what the files' names end with, and the keys of JSON.
        train, valid, test: what the files' names begin with.

    Example:
        >>> import eqxformer as ef, pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("train", "valid", "test"):
        ...         _ = pathlib.Path(folder, f"{name}.en").write_text("a dog\\na cat\\n")
        ...         _ = pathlib.Path(folder, f"{name}.de").write_text("ein hund\\neine katze\\n")
        ...     ef.ParallelFiles().read(pathlib.Path(folder)).train.target
        ('ein hund', 'eine katze')
    """

    source: str = "en"
    target: str = "de"
    train: str = "train"
    valid: str = "valid"
    test: str = "test"

    def check(self) -> None:
        if self.source == self.target:
            raise ValueError(f"`source` and `target` must differ; both are {self.source!r}.")

    def read(self, path: Path) -> Splits:
        """The text in a directory or in a single file. Raises `ValueError` for what is wrong."""
        if path.is_dir():
            return Splits(
                *(self._found(path, name) for name in (self.train, self.valid, self.test))
            )
        if not path.exists():
            raise ValueError(f"There is no `{path}`; name a directory of parallel text, or a file.")
        return _split(path, self._of_one(path))

    def _found(self, folder: Path, name: str) -> ParallelText:
        """The two files of this name, or the one."""
        sides = [folder / f"{name}.{language}" for language in (self.source, self.target)]
        single = [folder / f"{name}{ending}" for ending in _READERS]
        if all(side.is_file() for side in sides):
            return of_two(*sides)
        for path in single:
            if path.is_file():
                return self._of_one(path)
        there = sorted(file.name for file in folder.iterdir() if file.is_file())
        shown = ", ".join(there[:12]) + (", ..." if len(there) > 12 else "")
        raise ValueError(
            f"`{folder}` must have {sides[0].name} and {sides[1].name}, or {single[0].name} or "
            f"{single[1].name}; it has {shown or 'no files'}. Names and languages are settings: "
            "--set files.train=train --set files.valid=valid --set files.test=test "
            "--set files.source=en --set files.target=de"
        )

    def _of_one(self, path: Path) -> ParallelText:
        reader = _READERS.get(path.suffix)
        if reader is None:
            raise ValueError(
                f"`{path}` must end in {' or '.join(_READERS)}, or be a directory; see the help of "
                "`ParallelFiles` for what is in it."
            )
        pairs = [
            reader(line, self, f"line {number:,} of `{path}`")
            for number, line in enumerate(_lines(path), 1)
        ]
        source, target = zip(*pairs, strict=True)
        return ParallelText(source, target)


def of_two(source: Path, target: Path) -> ParallelText:
    """The text of two files, line by line. Raises `ValueError` where one has more lines."""
    sides = [tuple(_lines(path)) for path in (source, target)]
    counts = [len(side) for side in sides]
    if counts[0] != counts[1]:
        raise ValueError(
            f"`{source}` and `{target}` must have the same number of lines; "
            f"got {counts[0]:,} and {counts[1]:,}."
        )
    return ParallelText(*sides)


def _lines(path: Path) -> list[str]:
    """The lines of a file: what stands between newlines, and nothing else ends one."""
    text = read_text(path)
    lines = text.removesuffix("\n").split("\n")
    if lines == [""]:
        raise ValueError(f"`{path}` is empty; name a file with text.")
    return lines


def _of_tabs(line: str, files: ParallelFiles, where: str) -> tuple[str, str]:
    parts = line.split("\t")
    if len(parts) != 2:
        raise ValueError(
            f"A line must be a text, a tab and its translation; {where} has {len(parts) - 1} tabs."
        )
    return parts[0], parts[1]


def _of_json(line: str, files: ParallelFiles, where: str) -> tuple[str, str]:
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"A line must be a JSON object; {where} is not.") from None
    values = values.get("translation", values) if isinstance(values, dict) else values
    found = [
        values.get(name) if isinstance(values, dict) else None
        for name in (files.source, files.target)
    ]
    if not all(isinstance(text, str) for text in found):
        raise ValueError(
            f"A line must be a JSON object with texts `{files.source}` and `{files.target}`; "
            f"{where} is not. Name its keys: --set files.source=... --set files.target=..."
        )
    source, target = (" ".join(text.split("\n")) for text in found)  # pyright: ignore
    return source, target


_READERS = {".tsv": _of_tabs, ".jsonl": _of_json}


def _split(path: Path, text: ParallelText) -> Splits:
    """The last tenth kept back, in two halves."""
    count = len(text.source)
    part = count // KEPT_BACK
    if not part:
        raise ValueError(
            f"`{path}` has {count} pairs, of which a tenth is kept back; it needs at least "
            f"{KEPT_BACK}."
        )

    def between(first: int, last: int) -> ParallelText:
        return ParallelText(text.source[first:last], text.target[first:last])

    cuts = (0, count - 2 * part, count - part, count)
    return Splits(*(between(first, last) for first, last in itertools.pairwise(cuts)))
