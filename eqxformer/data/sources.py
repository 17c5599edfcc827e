"""Files to learn from, as values: texts, lines of JSON, arrays of token ids.

A source says which files and how they are read; `open` gives their documents. Nothing in them is
left out: what cannot be read is an error that names the file and the line.
"""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from eqxformer.config import Config
from eqxformer.data.documents import Documents, Joined, TokenDocuments, check_number
from eqxformer.data.fingerprints import digest, digest_of_file
from eqxformer.data.mapped import Mapped, array_of
from eqxformer.strict_json import json_value

_BOM = b"\xef\xbb\xbf"
_PIECE = 1 << 22  # bytes or ids looked through at a time


class Source(Config):
    """Files and how their documents are read.

    Arguments:
        paths: a file, a directory, a pattern such as `"books/**/*.txt"`, or several of these. Of a
            directory, all files below it with the usual end of a name. Files come in the order of
            their names, and each once.
    """

    ends: ClassVar[tuple[str, ...]] = ()

    paths: str | tuple[str, ...]

    def files(self) -> list[Path]:
        """The files. Raises `ValueError` where a path finds none."""
        paths = (self.paths,) if isinstance(self.paths, str) else self.paths
        found = [file for path in paths for file in self._found(path)]
        if not found:
            raise ValueError(f"`{self.type_name}.paths` is empty; name a file.")
        return list(dict.fromkeys(found))

    def _found(self, path: str) -> list[Path]:
        if Path(path).is_file():
            return [Path(path)]
        if Path(path).is_dir():
            below = (f for f in Path(path).rglob("*") if f.is_file() and f.suffix in self.ends)
            found, what = sorted(below), f"a directory without {' or '.join(self.ends)} files"
        else:
            found = [Path(f) for f in sorted(glob.glob(path, recursive=True)) if Path(f).is_file()]
            what = "neither a file nor a directory, and as a pattern it finds none"
        if not found:
            raise ValueError(
                f"`{path}` is {what}; name files or a pattern such as `data/**/*{self.ends[0]}`."
            )
        return found

    def open(self) -> Documents:
        """The documents in the files."""
        raise NotImplementedError(f"{self.type_name} must say how its files are read.")


class TextFiles(Source):
    """UTF-8 texts, each file a document; of a directory all `.txt` files.

    Example:
        >>> import eqxformer as ef, pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     _ = pathlib.Path(directory, "one.txt").write_text("Once upon a time")
        ...     ef.TextFiles(directory).open()[0]
        'Once upon a time'
    """

    ends: ClassVar[tuple[str, ...]] = (".txt",)

    def open(self) -> Documents:
        """A text for each file, read when it is asked for."""
        return _Texts(self.files())


class JsonLines(Source):
    """Files with a JSON object on every line, each a document; of a directory all `.jsonl` files.

    Arguments:
        fields: the field that holds the document, a text or a list of token ids; or several, for
            documents that are tuples, such as a source and its translation.

    Example:
        >>> import eqxformer as ef, pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     lines = '{"text": "one"}\\n{"text": "two"}\\n'
        ...     _ = pathlib.Path(directory, "some.jsonl").write_text(lines)
        ...     documents = ef.JsonLines(directory).open()
        ...     len(documents), documents[1]
        (2, 'two')
    """

    ends: ClassVar[tuple[str, ...]] = (".jsonl",)

    fields: str | tuple[str, ...] = "text"

    def open(self) -> Documents:
        """A document for each line, read when it is asked for; only where lines end is in memory.

        Raises `ValueError` for a blank line, and a document raises it when it is read and its line
        is no object, lacks a field, or holds in it neither text nor ids.
        """
        return _joined([_Lines(file, self.fields) for file in self.files()])


class TokenFiles(Source):
    """Token ids in `.npy` files, or in `.bin` files as nanoGPT writes them; mapped, never loaded.

    Arguments:
        dtype: the type of the numbers in a `.bin` file; nanoGPT's are "uint16".
        separator: the id that ends a document and is part of it; None for one document per file.

    Example:
        >>> import eqxformer as ef, numpy as np, pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     np.save(pathlib.Path(directory, "some.npy"), np.array([5, 6, 0, 7, 0]))
        ...     documents = ef.TokenFiles(directory, separator=0).open()
        ...     [ids.tolist() for ids in documents]
        [[5, 6, 0], [7, 0]]
    """

    ends: ClassVar[tuple[str, ...]] = (".npy", ".bin")

    dtype: str | None = None
    separator: int | None = None

    def open(self) -> Documents:
        """`TokenDocuments` for one file; for several, their documents one after the other."""
        return _joined([self._read(file) for file in self.files()])

    def _read(self, file: Path) -> TokenDocuments:
        tokens = self._array(file)
        return TokenDocuments(tokens, _document_ends(tokens, self.separator), name=str(file))

    def _array(self, file: Path) -> np.ndarray:
        """The ids of a file. Raises `ValueError` for what are no ids."""
        if file.suffix == ".npy":
            try:
                tokens = np.load(file, mmap_mode="r")
            except (ValueError, EOFError) as error:
                raise ValueError(f"`{file}` cannot be mapped: {error}") from None
        elif self.dtype is None:
            raise ValueError(f'`{file}` does not say what it holds; give `dtype`, as "uint16".')
        else:
            kind, size = _number_type(self.dtype), file.stat().st_size
            if size % kind.itemsize:
                raise ValueError(
                    f"`{file}` of {size:,} bytes is no whole number of {self.dtype}; "
                    "it is cut off, or of another `dtype`."
                )
            tokens = np.memmap(file, kind, "r") if size else np.zeros(0, kind)
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise ValueError(
                f"`{file}` must hold whole numbers in one row; "
                f"got {tokens.dtype} of shape {tokens.shape}."
            )
        return tokens


class _Texts(Documents):
    """A text for each file."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int, /) -> str:
        check_number(number, len(self))
        return read_text(self._files[number])

    def where(self, number: int) -> str:
        return f"`{self._files[number]}`"

    def digest(self) -> str:
        return digest("texts", *map(digest_of_file, self._files))


class _Lines(Documents):
    """A document for each line of a file."""

    def __init__(self, file: Path, fields: str | tuple[str, ...]) -> None:
        self._file, self._fields = file, fields
        empty = file.stat().st_size == 0
        held = np.zeros(0, np.uint8) if empty else np.memmap(file, np.uint8, "r")
        self._bytes, self._ends = Mapped.of(held), _behind(held, ord("\n"))
        for number in np.flatnonzero(np.diff(self._ends, prepend=0) <= len("\r\n")).tolist():
            if not self._line(number).strip():
                raise ValueError(f"{self.where(number)} is blank; take it out.")

    def __len__(self) -> int:
        return len(self._ends)

    def _line(self, number: int) -> bytes:
        start = int(self._ends[number - 1]) if number else 0
        line = array_of(self._bytes)[start : int(self._ends[number])].tobytes()
        return line if number else line.removeprefix(_BOM)

    def __getitem__(self, number: int, /) -> Any:
        check_number(number, len(self))
        try:
            values = json_value(self._line(number).decode())
            if not isinstance(values, dict):
                raise ValueError(f"It must be a JSON object; got {type(values).__name__}.")
            if isinstance(self._fields, str):
                return _field(values, self._fields)
            return tuple(_field(values, field) for field in self._fields)
        except ValueError as error:
            raise ValueError(f"{self.where(number)} is no document. {error}") from None

    def where(self, number: int) -> str:
        return f"Line {number + 1} of `{self._file}`"

    def digest(self) -> str:
        return digest("lines", self._fields, digest_of_file(self._file))


def _number_type(name: str) -> np.dtype:
    try:
        return np.dtype(name)
    except TypeError:
        raise ValueError(f'`dtype` must be a type of numbers, as "uint16"; got {name}.') from None


def _joined(parts: list[Any]) -> Documents:
    """All documents of the files. Raises `ValueError` where there are none."""
    documents = parts[0] if len(parts) == 1 else Joined(parts)
    if not len(documents):
        raise ValueError("The files are empty: there is no document to learn from.")
    return documents


def _document_ends(tokens: np.ndarray, separator: int | None) -> Int[np.ndarray, " documents"]:
    """Behind which token each document ends."""
    if separator is None:
        return np.full(1, len(tokens)) if len(tokens) else np.zeros(0, np.int64)
    return _behind(tokens, separator)


def _behind(data: np.ndarray, last: int) -> Int[np.ndarray, " ends"]:
    """The places behind each `last`, and the end of all behind that."""
    pieces = [
        start + 1 + np.flatnonzero(data[start : start + _PIECE] == last)
        for start in range(0, len(data), _PIECE)
    ]
    ends = np.concatenate([np.zeros(1, np.int64), *pieces])
    return np.append(ends, len(data))[1:] if ends[-1] < len(data) else ends[1:]


def _field(values: dict[str, Any], name: str) -> Any:
    """A text, or token ids. Raises `ValueError` for anything else."""
    if name not in values:
        raise ValueError(f"It has no field `{name}`; its fields are {', '.join(values) or 'none'}.")
    value = values[name]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(item) is int and abs(item) < 2**63 for item in value):
        return np.array(value, np.int64)
    shown = repr(value)
    raise ValueError(
        f"`{name}` must be a text or a list of token ids; "
        f"got {shown if len(shown) < 60 else type(value).__name__}."
    )


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
        place = error.start + len(data) - len(error.object)  # behind a byte order mark
        raise ValueError(
            f"`{path}` is not UTF-8 text: byte {data[place]:#04x} at position {place}. "
            "Convert it to UTF-8 first."
        ) from None
    if "\0" in text:
        raise ValueError(f"`{path}` is a binary file: it has zero bytes. Name a text file.")
    return text.replace("\r\n", "\n")
