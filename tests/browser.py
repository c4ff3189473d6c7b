"""The Chromium of the tests that look: one that is found, or that `make test` installs, once.

DCL_BROWSER=required makes it a failure that there is none; =none leaves the pages unseen.
CHROMIUM may name one that is not on PATH.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Error, Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-prefers-reduced-motion",  # a colour half-way between two is measured as neither
]
PACKAGE = (  # an old list of packages may do
    "apt-get update -qq; "
    "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium"
)
PLAYWRIGHT = [sys.executable, "-m", "playwright", "install", "chromium"]
MINUTES = 10  # for one way to install it


def required() -> bool:
    return os.environ.get("DCL_BROWSER", "") not in ("", "none")


def start(play: Playwright) -> Browser:
    """The first that starts, playwright's own last: a name on PATH may be a stub or lack parts."""
    named = [os.environ.get("CHROMIUM", ""), *NAMES]
    errors = []
    for path in [*filter(None, (shutil.which(name) for name in named if name)), None]:
        try:
            return play.chromium.launch(executable_path=path, args=FLAGS)
        except Error as error:
            errors.append(error)
    raise errors[0]


@contextmanager
def opened() -> Iterator[Browser]:
    """A browser, or the test is skipped; where one is required, failed."""
    if os.environ.get("DCL_BROWSER") == "none":
        pytest.skip("DCL_BROWSER is none")
    with sync_playwright() as play:
        try:
            chromium = start(play)
        except Error as error:
            end = pytest.fail if required() else pytest.skip
            end(f"No Chromium starts: {error}")
        yield chromium
        chromium.close()


@pytest.fixture(scope="module", name="browser")
def looking() -> Iterator[Browser]:
    with opened() as chromium:
        yield chromium


# ---------------------------------------------------------------- installed once, by prove.py


def starts() -> bool:
    with sync_playwright() as play:
        try:
            start(play).close()
        except Error:
            return False
    return True


def done(command: list[str], minutes: float) -> str:
    """How a command ended that may print what it likes: "" if well, else in a few words."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        return "failed" if process.wait(60 * minutes) else ""
    except subprocess.TimeoutExpired:
        return f"took more than {minutes:g} minutes"
    finally:
        if process.poll() is None:  # also when interrupted: with all that it has started
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ways() -> dict[str, list[str]]:
    """Commands that install one, to be tried in this order."""
    system = os.geteuid() == 0 and shutil.which("apt-get")
    return ({"apt-get": ["sh", "-c", PACKAGE]} if system else {}) | {"playwright": PLAYWRIGHT}


def get() -> str:
    """Have a Chromium that starts, installed if need be: "", or why there is none."""
    if os.environ.get("DCL_BROWSER") == "none":
        return "DCL_BROWSER is none"
    if starts():
        return ""
    print("Installing a Chromium (minutes, once)", flush=True)
    found = ["no Chromium starts"]
    for name, command in ways().items():
        if not (end := done(command, MINUTES)):
            if starts():
                return ""
            end = "does not start"
        found.append(f"{name} {end}")
    return "; ".join(found)


# ---------------------------------------------------------------- what a page shows


class Seen:
    """What a page asked for and complained of."""

    def __init__(self, page, address: str):
        self.foreign: list[str] = []
        self.bad: list[str] = []
        self.console: list[str] = []
        page.on("request", lambda r: self._request(r.url, address))
        page.on(
            "response", lambda r: self.bad.append(f"{r.status} {r.url}") if r.status > 399 else 0
        )
        page.on("requestfailed", lambda r: self.bad.append(f"failed {r.url}"))
        page.on("console", lambda m: self.console.append(m.text) if m.type == "error" else 0)
        page.on("pageerror", lambda e: self.console.append(str(e)))

    def _request(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.foreign.append(url)


BROKEN_IMAGES = """() => [...document.images]
  .filter(i => !i.complete || i.naturalWidth === 0).map(i => i.src.slice(0, 120))"""

# the page itself must not scroll sideways, and no element of the text may stick out of it
OVERFLOW = """() => {
  const root = document.documentElement, wide = [];
  if (root.scrollWidth > root.clientWidth) wide.push('page: ' + root.scrollWidth);
  const article = document.querySelector('article');
  if (!article) return wide;
  for (const e of article.querySelectorAll('*')) {
    const box = e.getBoundingClientRect();
    if (box.right <= root.clientWidth + 1 || box.width === 0) continue;
    let scrolls = false;
    for (let p = e; p && p !== article; p = p.parentElement) {
      const how = getComputedStyle(p).overflowX;
      if (how === 'auto' || how === 'scroll' || how === 'hidden') { scrolls = true; break; }
    }
    if (!scrolls) wide.push(e.tagName + ' ' + e.className + ': ' + Math.round(box.right));
  }
  return wide.slice(0, 5);
}"""

# code, output, tables and formulas in sight that are cut at the right, or scroll sideways
SIDEWAYS = """() => {
  const wide = '.highlight pre, .cell_output pre, .cell_output, table, div.math, mjx-container';
  return [...document.querySelectorAll(wide)]
    .filter(e => e.closest('article') && e.clientWidth && e.scrollWidth > e.clientWidth + 1)
    .filter(e => getComputedStyle(e).overflowX !== 'visible')
    .map(e => e.tagName + ' ' + e.scrollWidth + ': ' + e.textContent.trim().slice(0, 50));
}"""

# what the form of a chapter asks of its pictures and answers
FORM = """() => {
  const faults = [], images = [...document.querySelectorAll('article img')];
  for (const i of images) {
    const caption = i.closest('figure')?.querySelector('.caption-number');
    if (!caption) faults.push('no caption: ' + i.src.split('/').pop());
    if (!i.alt || i.alt.includes('_images/')) faults.push('no alt: ' + i.src.split('/').pop());
  }
  const top = images[0] ? images[0].getBoundingClientRect().top + scrollY : Infinity;
  if (top > 1200) faults.push('the first picture begins at ' + Math.round(top) + ' px');
  for (const a of document.querySelectorAll('.solution'))
    if (!a.classList.contains('toggle-hidden')) faults.push('open: ' + a.id);
  return faults;
}"""

# the contrast between text and what lies behind it, worst paragraph first
CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const parse = c => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((s, v, k) => s + v * [.2126, .7152, .0722][k], 0);
  const low = [];
  const texts = ['p', 'li', 'h1', 'h2', 'td'].map(tag => 'article ' + tag).join(', ');
  for (const e of document.querySelectorAll(texts)) {
    if (!e.textContent.trim() || !e.getClientRects().length) continue;
    const fill = p => parse(getComputedStyle(p).backgroundColor);
    let behind = e;
    while (behind && fill(behind)[3] < 250) behind = behind.parentElement;
    const back = light(behind ? fill(behind) : [255, 255, 255]);
    const front = light(parse(getComputedStyle(e).color));
    const ratio = (Math.max(back, front) + .05) / (Math.min(back, front) + .05);
    if (ratio < 4.5) low.push(ratio.toFixed(1) + ': ' + e.textContent.trim().slice(0, 50));
  }
  return low.slice(0, 5);
}"""
