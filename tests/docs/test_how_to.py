"""The pages of `docs/how-to` do what they say: their Python runs from top to bottom."""

from pathlib import Path

import jax
import pytest

from eqxformer import architectures

pages = pytest.importorskip("website.pages", reason="the site's sources are not in the sdist")

PAGES = sorted((Path(__file__).parents[2] / "docs" / "how-to").glob("*.md"))


@pytest.fixture(autouse=True)
def _nothing_stays_registered():
    before = dict(architectures._own)
    yield
    architectures._own.clear()
    architectures._own.update(before)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_snippets_of_a_page_run_and_print_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.debug_key_reuse(False):  # a page may use a key for several things
        for ran in pages.run(page):
            assert ran.right, ran.printed


def test_the_example_of_an_architecture_is_one_short_file():
    text = Path(PAGES[0]).with_name("add-an-architecture.md").read_text(encoding="utf-8")
    first = next(pages.BLOCK.finditer(text))["code"]
    assert len(first.splitlines()) < 60
