"""Text that a command works on: from an option, a file, or another command."""

import sys
from pathlib import Path


def given_text(text: str | None, file: Path | None, option: str) -> str | None:
    """What was given by `option`, in a file (`-` is standard input), or through a pipe.

    None where nothing was and a person sits at the terminal. Raises `ValueError` for both, or for a
    file that is no text.
    """
    if text is not None and file is not None:
        raise ValueError(f"Give {option} or --file, not both.")
    if text is not None:
        return text
    if file is None and sys.stdin.isatty():
        return None
    where = "standard input" if file is None or str(file) == "-" else str(file)
    try:
        if where == "standard input":
            # What `echo` puts behind a text is not part of it.
            return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        return Path(where).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is no text in UTF-8: {error.reason}.") from None
