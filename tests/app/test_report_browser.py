"""The page about a run in a browser: how it looks, its map, and the names of its clusters."""

import csv
import json

import pytest
from test_report import HOSTILE, LOG, NAMES, SCRIPT, case

from browser import BROKEN_IMAGES, CONTRAST, OVERFLOW, Seen, looking  # noqa: F401
from dcl.app import report


@pytest.mark.parametrize("log", [[], LOG], ids=["bare", "log"])
def test_in_a_browser(browser, tmp_path, log):
    files = [*NAMES, "long" * 60, *(f"{i}.jpg" for i in range(59 - len(NAMES)))]
    about = {"command": "dcl fit " + "x" * 300, "pretext.train.warmup_epochs": 3}
    (tmp_path / "config.json").write_text("{}")
    path = report.report(
        tmp_path / "report.html", *case(), files=files, log=log, title=HOSTILE, about=about
    )
    for scheme in ("light", "dark"):
        # without its policy, which would stop a name that got through (the test below)
        context = browser.new_context(
            color_scheme=scheme, viewport={"width": 1280, "height": 900}, bypass_csp=True
        )
        tab = context.new_page()
        seen, dialogs = Seen(tab, path.as_uri()), []
        tab.on("dialog", lambda d, dialogs=dialogs: (dialogs.append(d.message), d.dismiss()))
        tab.goto(path.as_uri(), wait_until="load")
        tab.evaluate("() => document.querySelectorAll('details').forEach(d => { d.open = true; })")
        for width in (1280, 390):
            tab.set_viewport_size({"width": width, "height": 900})
            assert tab.evaluate(OVERFLOW) == [], f"sticks out at {width} px, {scheme}"
        assert tab.evaluate(CONTRAST) == []
        assert tab.evaluate(BROKEN_IMAGES) == []
        assert HOSTILE in tab.title()
        assert HOSTILE in tab.inner_text("article") and SCRIPT in tab.inner_text("article")
        assert seen.foreign == seen.bad == seen.console == dialogs == []
        context.close()


def test_the_policy_stops_what_gets_through(browser, tmp_path):
    """If a text did reach the page unescaped, nothing of it would run or be fetched."""
    path = report.report(tmp_path / "report.html", *case())
    hole = '<img src="https://example.invalid/a.png" onerror="alert(1)"><script>alert(2)</script>'
    path.write_text(path.read_text("utf-8").replace("<h2>Map</h2>", hole), "utf-8")
    context = browser.new_context()
    tab = context.new_page()
    dialogs, answered = [], []
    tab.on("dialog", lambda d: (dialogs.append(d.message), d.dismiss()))
    tab.on("response", lambda r: answered.append(r.url) if r.url.startswith("http") else None)
    seen = Seen(tab, path.as_uri())
    tab.goto(path.as_uri(), wait_until="load")
    assert dialogs == answered == []
    assert any("Content Security Policy" in line for line in seen.console)
    context.close()


def test_names_are_kept_and_saved_and_the_map_tells_them(browser, tmp_path):
    name, typed = '"1", <b>', ' cats, "big" & <i>small</i> '
    path = report.report(tmp_path / "report.html", *case(), files=[name] * 60)
    context = browser.new_context(accept_downloads=True)
    tab = context.new_page()
    seen = Seen(tab, path.as_uri())
    tab.goto(path.as_uri(), wait_until="load")
    tab.fill('input[data-cluster="1"]', typed)
    assert tab.inner_text('nav [data-named="1"]').strip() == typed.strip()
    tab.reload()
    assert tab.input_value('input[data-cluster="1"]') == typed
    with tab.expect_download() as download:
        tab.click("#save")
    rows = list(csv.reader(download.value.path().read_text("utf-8").splitlines()))
    assert rows == [["cluster", "name"], ["1", typed.strip()], ["0", ""], ["3", ""], ["2", ""]]
    assert download.value.suggested_filename == "clusters.csv"

    data = json.loads(tab.inner_text("#data") or tab.text_content("#data"))
    tab.focus("#map > canvas")
    for key, direction in (("+", 0), ("ArrowRight", 1), ("ArrowUp", 0), ("0", 0)):
        tab.keyboard.press(key)
        said = tab.inner_text("#tip")
        assert said.startswith(f"{name}: cluster "), (key, direction)
    k = data["cluster"].index(1)
    box = tab.locator("#map > canvas").bounding_box()
    fit = min((box["width"] - 30) / max(data["x"]), (box["height"] - 30) / max(data["y"]))
    at = box["width"] / 2 + fit * (data["x"][k] - max(data["x"]) / 2)
    up = box["height"] / 2 - fit * (data["y"][k] - max(data["y"]) / 2)
    tab.mouse.move(box["x"] + at, box["y"] + up)
    said = f"{name}: cluster 1 ({typed}), confidence {data['confidence'][k]:.2f}"
    assert tab.text_content("#tip") == said
    assert seen.foreign == seen.bad == seen.console == []

    # another clustering of the same files starts without names
    images, p, z = case()
    report.report(path, images, p.roll(1, 1), z, files=[name] * 60)
    tab.reload()
    assert {box.input_value() for box in tab.query_selector_all("input[data-cluster]")} == {""}
    context.close()
