"""The Python of a page: run from top to bottom, what it prints beside what the page says.

    python -m website.pages docs/annotated.md ...

writes into the pages what their code prints. A fence of `output` behind a block of Python is what
that block prints, or the error with which it ends; `...` at the end of a line stands for the rest
of it. Of `output about`, numbers may differ a little, as they do from machine to machine. A block
that stands in no such pair is run too.
"""

import contextlib
import io
import math
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n```(?P<kind>output(?: about)?)\n(?P<output>.*?)^```\n)?",
    flags=re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
NEAR = 0.25  # relative, of numbers that are said to be about right


class Ran(NamedTuple):
    """A block: where it stands in the page, what it prints, and what the page says of that."""

    match: re.Match[str]
    printed: str

    @property
    def right(self) -> bool:
        """Whether the page says what the block prints; a block of which it says nothing is."""
        said = self.match["output"]
        if said is None or leaves_out(said).fullmatch(self.printed):
            return True
        return self.match["kind"] == "output about" and about(said, self.printed)


def run(page: pathlib.Path, names: dict[str, Any] | None = None) -> Iterator[Ran]:
    """Runs the blocks of a page one after the other, all in `names`."""
    names = {"__name__": "__page__"} if names is None else names
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        code = compile("\n" * line + match["code"], str(page), "exec")
        written = io.StringIO()
        with contextlib.redirect_stdout(written):
            try:
                exec(code, names)
            except Exception as error:
                if not ends_with_an_error(match["output"]):
                    raise
                print(f"{type(error).__name__}: {error}")
        yield Ran(match, without_trailing_spaces(written.getvalue()))


def ends_with_an_error(output: str | None) -> bool:
    """Whether a page says that a block ends with an error."""
    return re.search(r"^[A-Z]\w+: ", output or "", flags=re.MULTILINE) is not None


def leaves_out(said: str) -> re.Pattern[str]:
    """What a page says as a pattern: `...` at the end of a line is the rest of that line."""
    lines = (
        re.escape(line.removesuffix("...")) + ".*" * line.endswith("...")
        for line in said.splitlines()
    )
    return re.compile("".join(f"{line}\n" for line in lines))


def about(said: str, printed: str) -> bool:
    """Whether two texts are the same but for numbers that are near to each other.

    Example:
        >>> about("loss 3.99 after 1 step\\n", "loss 4.01 after 1 step\\n")
        True
        >>> about("loss 3.99\\n", "loss 9.99\\n")
        False
    """
    numbers = [list(map(float, NUMBER.findall(text))) for text in (said, printed)]
    if NUMBER.sub("#", said) != NUMBER.sub("#", printed):
        return False
    return all(
        math.isclose(a, b, rel_tol=NEAR, abs_tol=0.02) for a, b in zip(*numbers, strict=True)
    )


def without_trailing_spaces(text: str) -> str:
    """The lines of a text, none of which ends with a space."""
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def written(page: pathlib.Path, names: dict[str, Any] | None = None) -> str:
    """The text of a page with what its blocks print in the place of what it said."""
    text = page.read_text(encoding="utf-8")
    parts, at = [], 0
    for ran in run(page, names):
        if not ran.right:
            parts += [text[at : ran.match.start("output")], ran.printed]
            at = ran.match.end("output")
    return "".join([*parts, text[at:]])


def main() -> None:
    """Writes the pages named on the command line anew."""
    for name in sys.argv[1:]:
        page = pathlib.Path(name)
        page.write_text(written(page), encoding="utf-8")


if __name__ == "__main__":
    main()
