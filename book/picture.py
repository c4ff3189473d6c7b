"""Take the screenshot of a chapter in README.md: python book/picture.py (after a build)."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "_build" / "html" / "chapters" / "scan.html"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser for the pictures: the one of this machine, else playwright's own."""
    with sync_playwright() as play:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


if __name__ == "__main__":
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme="light")
        page.goto(PAGE.as_uri())
        page.evaluate("async () => { await document.fonts.ready; await MathJax.startup.promise }")
        page.wait_for_timeout(500)
        page.screenshot(path=ROOT / "book" / "assets" / "chapter.png")
