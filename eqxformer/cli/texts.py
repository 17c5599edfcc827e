"""Text that a command works on: from an option, a file, or another command."""

import sys
from pathlib import Path

from eqxformer.data.sources import read_text


def given_text(text: str | None, file: Path | None, option: str) -> str | None:
    """What was given by `option`, in a file (`-` is standard input), or through a pipe.

    Line ends are newlines. None where nothing was and a person sits at the terminal. Raises
    `ValueError` for both, or for a file that is no text.
    """
    if text is not None and file is not None:
        raise ValueError(f"Give {option} or --file, not both.")
    if text is not None:
        return text
    if file is None and sys.stdin.isatty():
        return None
    if file is not None and str(file) != "-":
        return read_text(file)
    try:
        piped = sys.stdin.buffer.read().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is no text in UTF-8: {error.reason}.") from None
    return piped.removesuffix("\n")  # what `echo` puts behind a text is not part of it
