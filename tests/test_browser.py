"""Where the browser of the other tests comes from, and what is said where there is none."""

import os
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from playwright.sync_api import Error

import browser
import prove


@pytest.fixture(autouse=True)
def nothing(monkeypatch, tmp_path):
    """A PATH with nothing on it, and nobody has asked for anything."""
    for name in ("DCL_BROWSER", "CHROMIUM", "DEBIAN_FRONTEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


def put(folder, name, script=""):
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


class Play:
    """A playwright whose browsers start or not; None is its own."""

    def __init__(self, *good):
        self.good, self.asked, self.chromium = good, [], self

    def launch(self, executable_path, args):
        self.asked.append(executable_path and os.path.basename(executable_path))
        if self.asked[-1] not in self.good:
            raise Error(f"{self.asked[-1]} does not start")
        return SimpleNamespace(name=self.asked[-1], close=lambda: None)


@pytest.mark.parametrize(
    "there, good, asked",
    [
        (["google-chrome", "chromium"], ["chromium", None], ["chromium"]),
        (["google-chrome"], ["google-chrome"], ["google-chrome"]),
        (["chromium-browser"], [None], ["chromium-browser", None]),  # a stub
        (["mine", "chromium"], ["mine"], ["mine"]),  # named in CHROMIUM
        ([], [None], [None]),
    ],
)
def test_the_first_that_starts_is_taken(there, good, asked, monkeypatch, tmp_path):
    for name in there:
        put(tmp_path, name)
    monkeypatch.setenv("CHROMIUM", "mine")
    play = Play(*good)
    assert browser.start(play).name == asked[-1] and play.asked == asked
    with pytest.raises(Error, match=f"{asked[0]} does not start"):  # the first complains
        browser.start(Play())


# ---------------------------------------------------------------- installed


@pytest.mark.parametrize(
    "good, first, run, why",
    [
        ([], True, [], ""),
        (["apt-get"], False, ["apt-get"], ""),
        (["playwright"], False, ["apt-get", "playwright"], ""),
        ([], False, ["apt-get", "playwright"],
         "no Chromium starts; apt-get failed; playwright failed"),
        (["playwright"], None, ["apt-get", "playwright"],
         "no Chromium starts; apt-get failed; playwright does not start"),
    ],
)  # fmt: skip
def test_it_is_installed_where_none_starts(good, first, run, why, monkeypatch, tmp_path):
    """As root, with apt-get. `first`: whether one starts before; None: never."""
    put(tmp_path, "apt-get")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    seen = []

    def done(command, minutes):
        seen.append("apt-get" if command[0] == "sh" else "playwright")
        return "" if seen[-1] in good else "failed"

    monkeypatch.setattr(browser, "done", done)
    starts = lambda: first is not None and (first or bool({*seen} & {*good}))  # noqa: E731
    monkeypatch.setattr(browser, "starts", starts)
    assert browser.get() == why and seen == run
    monkeypatch.setenv("DCL_BROWSER", "none")
    assert browser.get() == "DCL_BROWSER is none" and seen == run
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # packages of the system are for its owner
    assert list(browser.ways()) == ["playwright"]


def test_the_package_is_installed_even_from_an_old_list(tmp_path):
    put(tmp_path, "apt-get", f'echo "$@ $DEBIAN_FRONTEND" >> {tmp_path}/log; [ "$1" = install ]')
    assert browser.done(["/bin/sh", "-c", browser.PACKAGE], 1) == ""
    update, install = (tmp_path / "log").read_text().splitlines()
    assert update.startswith("update")
    assert install.startswith("install -y") and install.endswith("chromium noninteractive")


def test_a_command_ends_in_a_few_words_and_in_time(capfd):
    start = time.perf_counter()
    assert browser.done(["/bin/sh", "-c", "echo much; echo more >&2"], 1) == ""
    assert browser.done(["/bin/sh", "-c", "echo much; exit 100"], 1) == "failed"
    wait = ["/bin/sh", "-c", "/bin/sleep 60 & wait"]  # a child of the child holds on too
    assert browser.done(wait, 0.005) == "took more than 0.005 minutes"
    assert time.perf_counter() - start < 20 and capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- not installed


@pytest.mark.parametrize(
    "asked, end", [("", pytest.skip), ("none", pytest.skip), ("required", pytest.fail)]
)
def test_a_missing_browser_fails_only_where_it_is_required(asked, end, monkeypatch):
    monkeypatch.setenv("DCL_BROWSER", asked)
    monkeypatch.setattr(browser, "sync_playwright", lambda: nullcontext(Play()))
    words = "DCL_BROWSER is none" if asked == "none" else "No Chromium starts: None does not start"
    ends = (pytest.skip.Exception, pytest.fail.Exception)
    with pytest.raises(ends, match=words) as ended, browser.opened():
        pass
    assert ended.type is end.Exception  # a skip that nobody expects would skip this test


def test_only_the_tests_that_look_are_left_out():
    files = ["tests/app/test_report.py", "tests/app/test_report_browser.py"]
    chosen = "browser or confidence_counts"
    command = [sys.executable, "-m", "pytest", "-q", *files, "-k", chosen]
    environment = {**os.environ, "DCL_BROWSER": "none"}
    done = subprocess.run(
        command, cwd=prove.ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "1 passed, 4 skipped" in done.stdout


def asks(status=0):
    return f"import os; print('asked', os.environ.get('DCL_BROWSER'), flush=True); exit({status})"


def proved(monkeypatch, capfd, why, names=(), looks=0, last=0):
    """Exit status and output of `make test`, where `why` there is no browser."""
    programs = {"lint": asks(), "browser": asks(looks), "notebooks": f"exit({last})"}
    parts = {name: [[sys.executable, "-c", program]] for name, program in programs.items()}
    monkeypatch.setattr(prove, "PARTS", parts)
    monkeypatch.setattr(browser, "get", lambda: why)
    return prove.main(list(names)), capfd.readouterr().out


@pytest.mark.parametrize("last", [0, 1])
def test_without_a_browser_the_other_parts_decide(last, monkeypatch, capfd):
    code, out = proved(monkeypatch, capfd, "apt-get failed", last=last)
    assert code == last and out.count("asked none") == 2
    rows = {line.split()[0]: line for line in out.partition("== summary")[2].splitlines() if line}
    assert rows["browser"].endswith("ok; the tests in a browser were NOT RUN")
    assert rows["lint"].endswith(" ok")
    assert out.endswith("No browser: apt-get failed.\n")


def test_a_browser_that_was_had_must_start_for_the_tests(monkeypatch, capfd):
    assert set(prove.LOOKING) < set(prove.PARTS)
    code, out = proved(monkeypatch, capfd, "")
    assert code == 0 and out.count("asked required") == 2
    assert "NOT RUN" not in out and "No browser" not in out
    _, out = proved(monkeypatch, capfd, "apt-get failed", ["notebooks"])  # does not look
    assert "No browser" not in out


def test_where_it_is_required_the_tests_run_without_one_and_fail(monkeypatch, capfd):
    monkeypatch.setenv("DCL_BROWSER", "required")
    code, out = proved(monkeypatch, capfd, "apt-get failed", looks=1)
    assert code == 1 and out.count("asked required") == 2
    assert "FAILED" in out and "No browser: apt-get failed." in out


def test_continuous_integration_requires_it(monkeypatch, tmp_path):
    put(tmp_path, "make", 'echo "$1 $DCL_BROWSER"')
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "DCL_BROWSER": "none"}
    out = subprocess.check_output([prove.ROOT / ".ci" / "run"], env=environment, text=True)
    assert out == "test required\n"
