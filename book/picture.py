"""Take the screenshot of a chapter in README.md: python book/picture.py (after a build)."""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_build" / "html"


def take(chapter: str, anchor: str, out: Path) -> None:
    """Write a screenshot of a page of the built book, scrolled to one of its sections."""
    page_address = (SITE / "chapters" / f"{chapter}.html").as_uri()
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--no-sandbox", "--disable-gpu"],
        )
        page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme="light")
        page.goto(f"{page_address}#{anchor}")
        page.evaluate("async () => { await document.fonts.ready; await MathJax.startup.promise }")
        page.wait_for_timeout(500)
        page.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chapter", default="scan")
    parser.add_argument("--anchor", default="what-the-clusters-look-like")
    parser.add_argument("--out", type=Path, default=ROOT / "book" / "assets" / "chapter.png")
    chosen = parser.parse_args()
    take(chosen.chapter, chosen.anchor, chosen.out)
