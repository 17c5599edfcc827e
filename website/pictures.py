"""Pictures of a page, put into it as they are, so that they take its colours, light or dark."""

import pathlib
import re

IMAGE = re.compile(r"^!\[([^\]]*)\]\(([\w./-]*pictures/[\w-]+\.svg)\)$", flags=re.MULTILINE)
STYLE = re.compile(r"<style>.*?</style>", flags=re.DOTALL)


def inlined(text: str, page: pathlib.Path) -> str:
    """Markdown with the drawings of `docs/pictures` in place of the links to them."""

    def drawn(match: re.Match[str]) -> str:
        svg = (page.parent / match[2]).read_text(encoding="utf-8")
        lines = [line for line in STYLE.sub("", svg).splitlines() if line.strip()]
        return f'<figure class="picture" markdown="0">{" ".join(lines)}</figure>'

    return IMAGE.sub(drawn, text)
