"""Checks of the built site in a real browser.

    python -m website.check_browser [DIRECTORY] [--pictures FOLDER]

Headless Chromium opens every page, as wide as a desk and as a phone, in light and dark: no error
on the console, nothing fetched from elsewhere, no broken picture, nothing wider than the window, a
button on every block of code. The button copies, the search finds "attention", and the keyboard
reaches what a mouse does. Where there is no Chromium nothing is checked, and that is said.
`--pictures` keeps a picture of the top of each page.
"""

import argparse
import contextlib
import functools
import http.server
import pathlib
import shutil
import sys
import threading
from collections.abc import Iterator
from typing import Any

SIZES = {"desk": (1280, 900), "phone": (390, 844)}
SCHEMES = ("light", "dark")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# What is wrong with the page that is open, as a list of sentences.
LOOK = """() => {
  const wrong = []
  for (const image of document.images)
    if (image.complete && !image.naturalWidth) wrong.push(`picture ${image.src} is broken`)
  const wide = document.scrollingElement
  if (wide.scrollWidth > wide.clientWidth + 1) wrong.push(
    `${wide.scrollWidth - wide.clientWidth} pixels wider than the window`)
  for (const code of document.querySelectorAll(".md-typeset .highlight pre > code"))
    if (!code.closest(".highlight").querySelector("button"))
      wrong.push(`no copy button: ${code.textContent.slice(0, 40)}`)
  if (document.querySelectorAll("h1").length !== 1) wrong.push("not one heading of the first rank")
  for (const svg of document.querySelectorAll(".picture svg"))
    if (!svg.getBoundingClientRect().width) wrong.push("a drawing without width")
  return wrong
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and writes nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the terminal for what is found."""


@contextlib.contextmanager
def served(site: pathlib.Path) -> Iterator[str]:
    """The address of a server of this directory, on this machine alone."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def browser() -> str | None:
    """Where there is a Chromium; None for nowhere."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def mistakes(site: pathlib.Path, pictures: pathlib.Path | None) -> Iterator[str]:
    """What is wrong with a site in this browser, one sentence each."""
    from playwright.sync_api import sync_playwright

    paths = [str(file.parent.relative_to(site)) for file in sorted(site.rglob("index.html"))]
    with served(site) as address, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        for size, (width, height) in SIZES.items():
            for scheme in SCHEMES:
                context = chromium.new_context(
                    viewport={"width": width, "height": height},
                    color_scheme=scheme,  # pyright: ignore[reportArgumentType]
                )
                yield from opened(context, address, paths, f"{size}, {scheme}", pictures)
                context.close()
        allowed = ["clipboard-read", "clipboard-write"]
        context = chromium.new_context(viewport={"width": 1280, "height": 900}, permissions=allowed)
        yield from copied(context.new_page(), address)
        yield from used(context.new_page(), address)
        chromium.close()


def opened(
    context: Any, address: str, paths: list[str], how: str, pictures: pathlib.Path | None
) -> Iterator[str]:
    """Opens every page once and looks at it."""
    page, heard = context.new_page(), []
    page.on("console", lambda said: heard.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("requestfailed", lambda request: heard.extend(_failed(request)))
    page.on("request", lambda request: heard.extend(_elsewhere(request.url, address)))
    page.on("response", lambda answer: heard.extend(_refused(answer)))
    for path in paths:
        page.goto(f"{address}/{path}/", wait_until="load")
        wrong = [*page.evaluate(LOOK), *heard]
        heard.clear()
        yield from (f"/{path} ({how}): {each}." for each in wrong)
        if pictures is not None:
            name = f"{path.replace('/', '-').strip('.') or 'home'}-{how.replace(', ', '-')}.png"
            page.screenshot(path=str(pictures / name))


def copied(page: Any, address: str) -> Iterator[str]:
    """Copies the first block of code of the first page."""
    page.goto(f"{address}/")
    block = page.locator(".md-typeset .highlight").first
    if not block.locator("button").count():
        yield "The first block of code has no button."
        return
    block.locator("button").first.click()
    page.wait_for_timeout(300)
    got, code = page.evaluate("navigator.clipboard.readText()"), block.locator("code").inner_text()
    if got.strip() != code.strip():
        yield f"The copy button gives {got[:40]!r}."


def used(page: Any, address: str) -> Iterator[str]:
    """Searches, and goes through a page by the keyboard alone."""
    page.goto(f"{address}/")
    page.keyboard.press("Tab")
    if "md-skip" not in page.evaluate("document.activeElement.className"):
        yield "The first stop of the keyboard does not lead past the navigation."
    stops = set()
    for _ in range(25):
        page.keyboard.press("Tab")
        stops.add(page.evaluate("document.activeElement.outerHTML.slice(0, 200)"))
    if len(stops) < 20:
        yield f"25 presses of Tab reach {len(stops)} places only."
    page.keyboard.press("/")
    page.wait_for_timeout(300)
    page.keyboard.type("attention")
    with contextlib.suppress(Exception):
        page.wait_for_selector(".md-search-result__link", timeout=10_000)
    found = page.locator(".md-search-result__link").count()
    if not found:
        yield "The search does not find `attention`."
        return
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_timeout(1000)
    if page.url.rstrip("/") == address:
        yield "Enter does not open what the search has found."


def _elsewhere(url: str, address: str) -> list[str]:
    here = url.startswith((address, "data:", "blob:"))
    return [] if here else [f"fetches {url}"]


def _failed(request: Any) -> list[str]:
    """What could not be fetched; not what was given up because the next page was opened."""
    given_up = request.failure == "net::ERR_ABORTED"
    return [] if given_up else [f"could not fetch {request.url}: {request.failure}"]


def _refused(answer: Any) -> list[str]:
    return [f"{answer.url} answers {answer.status}"] if answer.status >= 400 else []


def main() -> None:
    """Prints what is wrong and exits with 1 if there is anything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("site", nargs="?", default="site", type=pathlib.Path)
    parser.add_argument("--pictures", type=pathlib.Path)
    given = parser.parse_args()
    if browser() is None:
        print("There is no Chromium here; nothing was checked in a browser.")
        return
    if given.pictures is not None:
        given.pictures.mkdir(parents=True, exist_ok=True)
    wrong = 0
    for wrong, each in enumerate(mistakes(given.site.resolve(), given.pictures), 1):  # noqa: B007
        print(each, flush=True)
    print(f"{wrong} mistakes." if wrong else "Every page, wide and narrow, light and dark: well.")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
