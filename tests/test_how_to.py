"""The pages of `docs/how-to` do what they say: their Python runs from top to bottom."""

import re
from pathlib import Path

import jax
import pytest

from eqxformer import architectures

PAGES = sorted((Path(__file__).parent.parent / "docs" / "how-to").glob("*.md"))


@pytest.fixture(autouse=True)
def _nothing_stays_registered():
    before = dict(architectures._own)
    yield
    architectures._own.clear()
    architectures._own.update(before)


def snippets(page):
    """The blocks of Python of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_snippets_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    with jax.debug_key_reuse(False):
        for number, snippet in enumerate(snippets(page)):
            exec(compile(snippet, f"{page.name}, block {number}", "exec"), names)


def test_the_example_of_an_architecture_is_one_short_file():
    first = snippets(Path(PAGES[0]).with_name("add-an-architecture.md"))[0]
    assert len(first.splitlines()) < 60
