"""The built site in a real browser: light and dark, wide and narrow, and alone on its island."""

import functools
import http.server
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from filelock import FileLock

from browser import BROKEN_IMAGES, CONTRAST, FORM, OVERFLOW, SIDEWAYS, Seen, looking  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
SOURCES = ["_config.yml", *(f"book/{p}" for p in ("**/*.md", "**/*.ipynb", "*.yml", "assets/*"))]

WIDE = {"width": 1280, "height": 900}
PATIENCE = 120_000  # ms for a page: the API is a megabyte, and other tests run beside it


def build_if_older() -> None:
    """Build the site from the committed outputs unless it is newer than all its sources."""
    newest = max(p.stat().st_mtime for pattern in SOURCES for p in ROOT.glob(pattern))
    page = SITE / "index.html"
    (ROOT / "_build").mkdir(exist_ok=True)
    with FileLock(ROOT / "_build" / ".lock"):  # two processes look at the site, one builds it
        if not page.exists() or page.stat().st_mtime < newest:
            command = [Path(sys.executable).parent / "jupyter-book", "build", "book", "--all", "-q"]
            subprocess.run(command, cwd=ROOT, check=True)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): ...


@pytest.fixture(scope="module")
def address():
    build_if_older()
    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def names() -> list[str]:
    """The pages that the table of contents leads to, the ends of the site included."""
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    files = [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]
    return [f"{name}.html" for name in files] + ["genindex.html"]


READY = """async () => {
  await document.fonts.ready;
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  for (const image of document.images) image.loading = 'eager';
  await Promise.all([...document.images].map(i => i.decode().catch(() => 0)));
}"""

# text that MathJax should have turned into pictures, outside of code
RAW_MATH = r"""() => {
  const left = [];
  const errors = document.querySelectorAll('mjx-merror, [data-mjx-error], merror');
  for (const e of errors) left.push('error: ' + e.textContent.slice(0, 80));
  for (const e of document.querySelectorAll('.math')) {
    if (!e.querySelector('mjx-container')) left.push('not rendered: ' + e.textContent.slice(0, 80));
  }
  const article = document.querySelector('article') || document.body;
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (node.parentElement.closest('pre, code, script, style, mjx-container')) continue;
    if (!/\\\(|\\\[|\$(?![A-Z_]{3})|\\begin\{/.test(node.data)) continue;
    left.push('raw: ' + node.data.slice(0, 80));
  }
  return left;
}"""


@pytest.mark.parametrize("name", names())
def test_page(browser, address, name):
    """Each page, in both widths and both colours."""
    for scheme in ("light", "dark"):
        with browser.new_page(color_scheme=scheme, viewport=WIDE) as page:
            page.set_default_timeout(PATIENCE)
            seen = Seen(page, address)
            page.goto(address + name, wait_until="load")
            page.evaluate(READY)
            assert page.evaluate("document.documentElement.dataset.theme") == scheme
            assert page.title()
            assert page.evaluate(SIDEWAYS) == [], f"{name} is cut at the right, {scheme}"
            if name.startswith("chapters/"):
                assert page.evaluate(FORM) == []
            for width in (1280, 390):
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate(OVERFLOW) == [], f"{name} sticks out at {width} px, {scheme}"
            assert page.evaluate(CONTRAST) == [], f"{name}, {scheme}: hard to read"
            assert page.evaluate(RAW_MATH) == []
            assert page.evaluate(BROKEN_IMAGES) == []
            assert seen.foreign == [], "requests to other origins"
            assert seen.bad == seen.console == []


def test_no_page_names_a_folder_of_this_machine(address):
    """What Sphinx prints of a value can hold the place of the clone: private, and no use."""
    assert [p.name for p in SITE.rglob("*.html") if str(ROOT) in p.read_text("utf-8")] == []


class Page(HTMLParser):
    """The links of a page, and the places on it that a link can name."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: set[str] = set()
        self.places = {"", "top"}
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.places |= {found.get("id") or "", found.get("name") or "" if tag == "a" else ""}
        if tag == "a" and found.get("href"):
            self.links.add(str(found["href"]))


def broken_links(site: Path) -> list[str]:
    """Links inside the site that find no page, or not their place on it."""
    files = [p for p in sorted(site.rglob("*.html")) if "_static" not in p.parts]
    pages = {path: Page(path) for path in files}
    broken = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            goal = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            known = pages[goal].places if goal in pages else {""}
            if not goal.is_file() or unquote(parts.fragment) not in known:
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


def test_links_lead_somewhere(address):
    """Every link inside the site finds its page, and its place on the page."""
    assert broken_links(SITE.resolve()) == []


def test_the_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        "<p id='here'></p><a href='b.html#there'></a><a href='#here'></a><a href='#gone'></a>"
        "<a href='c.html'></a><a href='b.html#nowhere'></a><a href='https://example.invalid/'></a>"
    )
    (tmp_path / "b.html").write_text("<a name='there'></a>")
    broken = ["a.html: #gone", "a.html: b.html#nowhere", "a.html: c.html"]
    assert broken_links(tmp_path.resolve()) == broken


def test_search_finds_a_chapter(browser, address):
    with browser.new_page(viewport=WIDE) as page:
        seen = Seen(page, address)
        page.goto(address + "index.html")
        buttons = "button.search-button:visible, button.search-button__button:visible"
        page.locator(buttons).first.click()
        box = page.locator("input[type=search]:visible")
        assert box.count() == 1, "one search field, not two"
        box.fill("sinkhorn")
        box.press("Enter")
        # results come one by one, and the first may be of another page
        page.wait_for_selector("#search-results li a[href*='chapters/']")
        assert seen.foreign == seen.console == []


def test_the_theme_can_be_switched(browser, address):
    """And stays as chosen. That each theme looks right is seen above, page by page."""
    with browser.new_page(color_scheme="light", viewport=WIDE) as page:
        page.goto(address + "index.html")
        button = page.locator("button.theme-switch-button:visible").first
        mode = "document.documentElement.dataset.mode"
        assert {button.click() or page.evaluate(mode) for _ in range(3)} == {
            "auto",
            "light",
            "dark",
        }
        while page.evaluate(mode) != "dark":
            button.click()
        page.reload()
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_folded_code_unfolds(browser, address):
    with browser.new_page(viewport=WIDE) as page:
        page.goto(address + names()[2])
        folded = page.locator("details.hide").first
        assert not folded.evaluate("e => e.open")
        folded.locator("summary").click()
        assert folded.evaluate("e => e.open")


def test_page_checks_can_fail(browser, address):
    """A foreign request, a broken image, wide text, grey on grey and raw maths are all noticed."""
    with browser.new_page(viewport={"width": 390, "height": 900}) as page:
        page.route("https://example.invalid/**", lambda route: route.fulfill(body=""))
        seen = Seen(page, address)
        page.goto(address + "index.html", wait_until="load")
        page.evaluate("""() => {
          const article = document.querySelector('article');
          const add = html => article.insertAdjacentHTML('beforeend', html);
          add('<img src="missing.png">');
          add('<img src="https://example.invalid/a.png">');
          add('<p style="width: 900px; background: #999; color: #888">wide</p>');
          add('<p>$$ x $$</p>');
          add(`<div class="highlight"><pre style="width: 90px">${'long '.repeat(50)}</pre></div>`);
          add('<div class="solution" id="answer"></div>');
        }""")
        page.evaluate(READY)
        assert any("900" in w or "P " in w or "page" in w for w in page.evaluate(OVERFLOW))
        assert page.evaluate(CONTRAST) and page.evaluate(RAW_MATH)
        assert any("long" in w for w in page.evaluate(SIDEWAYS))
        assert {f.split(":")[0] for f in page.evaluate(FORM)} >= {"no caption", "no alt", "open"}
        assert len(page.evaluate(BROKEN_IMAGES)) == 2
        assert seen.foreign == ["https://example.invalid/a.png"]
        assert any("404" in line for line in seen.bad)
