"""The docstrings of this house in the words that mkdocstrings knows."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Example:$", flags=re.MULTILINE)  # theirs is `Examples:`
DRAWN = re.compile(r"^ *(?:[■·] ?)+(?: {3,}(?:[■·] ?)+)?$")  # a row of a drawn mask


class OurWords(griffe.Extension):
    """Examples become sections with prompts, and drawn masks stay as they are drawn."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites one docstring before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    """The text with our words replaced.

    Example:
        >>> rewritten("Drawn:\\n\\n■ ·\\n■ ■\\n\\nExample:")
        'Drawn:\\n\\n    ■ ·\\n    ■ ■\\n\\nExamples:'
    """
    lines = EXAMPLE.sub("Examples:", text).split("\n")
    return "\n".join(f"    {line.strip()}" if _bare(line) else line for line in lines)


def _bare(line: str) -> bool:
    """Whether a row of a mask stands at the margin, where it would be read as prose."""
    return DRAWN.match(line) is not None and not line.startswith("    ")
