"""What MkDocs calls while it builds the site; see `hooks` in `mkdocs.yml`."""

import pathlib
import re
import sys
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from website import api, commands, configs, formulas, pictures, sources  # noqa: E402

WIDE = ("architectures.md",)  # one table, which takes the place of the contents
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([\w./-]+\.(?:py|json|yml))\)")


def on_config(config: Any) -> Any:
    """A page of `docs/how-to` needs no entry in the navigation: those left over come last."""
    (how_to,) = (part["How-to"] for part in config.nav if "How-to" in part)
    for file in sorted(pathlib.Path(config.docs_dir, "how-to").glob("*.md")):
        if (path := f"how-to/{file.name}") not in how_to:
            how_to.append(path)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made of the library itself."""
    for path, text in {**api.pages(), **commands.pages(), **configs.pages()}.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Sources and pictures in place; a link to a file that is no page is its name alone."""
    if page.parent is None:  # a page of its own has nothing to show beside it
        page.meta["hide"] = ["navigation"]
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]
    if page.file.abs_src_path is None:
        return markdown
    page.meta["search"] = {"boost": 2}  # before the reference, which has every word somewhere
    file = pathlib.Path(page.file.abs_src_path)
    text = sources.included(markdown.replace("```output about\n", "```output\n"), file)
    return pictures.inlined(OUTSIDE.sub(r"\1", text), file)


def on_page_content(html: str, **kwargs: Any) -> str:
    """Formulas as MathML; the search reads what is said of a name, not its source."""
    hidden = '<details class="mkdocstrings-source" data-search-exclude>'
    return formulas.shown(html).replace('<details class="mkdocstrings-source">', hidden)
