"""Pieces of the library's own source in a page, so that they cannot go stale.

A page has a link by itself, with the name of what is meant and the title `source`:

    [`Residual.run`](../../eqxformer/blocks/residual.py "source")

Where pages are read as plain files it is that link; in the site the lines of it stand there. The
names of a function's arguments, its docstring and its body are as in the file.
"""

import ast
import pathlib
import re
import textwrap
from typing import Any

LINK = re.compile(r'^\[`([\w.]+)`\]\(([\w./]+\.py) "source"\)$', flags=re.MULTILINE)
ROOT = pathlib.Path(__file__).resolve().parent.parent


def included(text: str, page: pathlib.Path) -> str:
    """The text of a page with its sources in place.

    Arguments:
        text: Markdown.
        page: the file it is from, from which paths count.
    """

    def code(match: re.Match[str]) -> str:
        file = (page.parent / match[2]).resolve()
        title = f"{file.relative_to(ROOT)}: {match[1]}"
        return f'```python title="{title}"\n{piece(file, match[1])}\n```'

    return LINK.sub(code, text)


def piece(file: pathlib.Path, name: str) -> str:
    """The lines that define `function`, `Class` or `Class.method`, without their docstring.

    Raises `LookupError` for a name that the file does not define.
    """
    source = file.read_text(encoding="utf-8")
    node: Any = ast.parse(source)
    for part in name.split("."):
        inside = (each for each in node.body if getattr(each, "name", "") == part)
        node = next(inside, None)
        if node is None:
            raise LookupError(f"{file.name} has no `{name}`.")
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    lines = source.splitlines()
    kept = range(first, node.end_lineno + 1)
    if ast.get_docstring(node) is not None and len(node.body) > 1:
        said = node.body[0]
        kept = [n for n in kept if not said.lineno <= n <= said.end_lineno]
    return textwrap.dedent("\n".join(lines[n - 1] for n in kept)).rstrip()
