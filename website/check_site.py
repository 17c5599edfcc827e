"""Checks of the built site that need no browser.

    python -m website.check_site [DIRECTORY]

No page fetches anything from another host; every link and picture leads somewhere, to a place that
is there; formulas are MathML; every public name of the library has its place in the API.
"""

import pathlib
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

from website import api

FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}
RELATIONS = {"stylesheet", "icon", "preload", "modulepreload", "preconnect", "dns-prefetch"}
# Material fetches these from elsewhere where a page asks for them: diagrams, counts of stars.
ASKED = ('class="mermaid"', 'data-md-component="source"')
URLS = re.compile(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)")


class Page(HTMLParser):
    """What one page fetches, links to, and offers as places to link to."""

    def __init__(self, text: str):
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes the addresses of one element."""
        given = {name: value or "" for name, value in attrs}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        self.fetched += [given[FETCHED[tag]]] if FETCHED.get(tag, "") in given else []
        if tag == "link" and RELATIONS & set(given.get("rel", "").split()):
            self.fetched.append(given.get("href", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.fetched += [a or b for a, b in URLS.findall(given.get("style", ""))]


def mistakes(site: pathlib.Path) -> Iterator[str]:
    """What is wrong with a site, one sentence each."""
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in sorted(site.rglob("*.html"))}
    for file, page in pages.items():
        name = file.relative_to(site)
        text = file.read_text(encoding="utf-8")
        if 'class="arithmatex"' in text:
            yield f"{name} has a formula that is not MathML."
        asked = [mark for mark in ASKED if mark in text]
        yield from (f"{name} has {mark}, which another host serves." for mark in asked)
        for address in page.fetched:
            yield from _elsewhere(name, address) or _missing(name, address, file, site, pages)
        for address in page.links:
            if not urlsplit(address).scheme and not address.startswith("//"):
                yield from _missing(name, address, file, site, pages)
    for file in sorted(site.rglob("*.css")):
        for found in URLS.findall(file.read_text(encoding="utf-8")):
            yield from _elsewhere(file.relative_to(site), found[0] or found[1])
    yield from undocumented(pages, site)


def undocumented(pages: dict[pathlib.Path, Page], site: pathlib.Path) -> Iterator[str]:
    """The public names that have no place in the page of their room."""
    for room, places in api.rooms().items():
        page = pages.get(site / "reference" / "api" / room / "index.html")
        there = set() if page is None else page.places
        missing = [place for place in places if place not in there]
        yield from (f"`{place}` is not on the page of {room}." for place in missing)


def _elsewhere(name: pathlib.Path, address: str) -> list[str]:
    parts = urlsplit(address)
    other = parts.scheme in ("http", "https") or bool(parts.netloc)
    return [f"{name} fetches {address} from another host."] if other else []


def _missing(
    name: pathlib.Path,
    address: str,
    file: pathlib.Path,
    site: pathlib.Path,
    pages: dict[pathlib.Path, Page],
) -> list[str]:
    parts = urlsplit(address)
    if parts.scheme == "data":
        return []
    path = unquote(parts.path)
    base = site / path.lstrip("/") if path.startswith("/") else file.parent / path
    target = (base if path else file).resolve()
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return [f"{name} leads to {address}, which is not there."]
    place = unquote(parts.fragment)
    if place and target in pages and place not in pages[target].places:
        return [f"{name} leads to {address}; there is no such place on that page."]
    return []


def main() -> None:
    """Prints what is wrong and exits with 1 if there is anything."""
    site = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "site").resolve()
    found = list(mistakes(site))
    print("\n".join(found) or f"{len(list(site.rglob('*.html')))} pages, nothing from elsewhere.")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
