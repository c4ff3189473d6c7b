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
