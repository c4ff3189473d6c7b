"""The set-up cell: nothing happens outside Colab, and in Colab only what is missing is fetched."""

import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

import notebooks
from notebooks import COLAB_INSTALLS, ROOT, address, badge, setup_source

URL = "https://github.com/someone/deep-clustering-book"


@pytest.fixture
def calls(monkeypatch):
    """Record what would be run, run nothing."""
    found = []
    monkeypatch.setattr(subprocess, "run", lambda command, **kw: found.append((command, kw)))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(Path, "exists", lambda path: False)
    return found


@pytest.fixture
def colab(monkeypatch):
    """A stand-in for the module by which Colab is recognised."""
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))


@pytest.mark.parametrize("url", ["", URL])
def test_outside_colab_nothing_happens(url, calls, monkeypatch):
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    before = list(sys.path)
    exec(setup_source(url, "main"), {})
    assert calls == [] and sys.path == before


def test_in_colab_it_clones_a_tag_and_installs_what_is_missing(calls, colab, monkeypatch):
    monkeypatch.setattr(notebooks, "COLAB_INSTALLS", {"yaml": "pyyaml", "no_such": "a-package"})
    exec(setup_source(URL, "v0.1.0"), {})
    (clone, kw), (install, kw2) = calls
    place = "/content/deep-clustering-book"
    assert [str(word) for word in clone] == (
        f"git clone --quiet --depth 1 --branch v0.1.0 {URL} {place}".split()
    )
    assert install[:4] == [sys.executable, "-m", "pip", "install"]
    assert install[-1] == "a-package"
    assert "--no-deps" in install  # nothing that is there, torch least of all, is touched
    assert kw["check"] and kw2["check"]
    assert sys.path[0] == place


def test_in_colab_with_everything_there_nothing_is_installed(calls, colab, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    exec(setup_source(URL, "main"), {})
    assert calls == []


def test_torch_is_never_installed():
    assert not {"torch", "torchvision", "numpy"} & set(COLAB_INSTALLS)


def test_while_the_address_is_unknown_the_cell_says_how_to_set_it(calls, colab):
    with pytest.raises(SystemExit, match="repository: url in _config.yml"):
        exec(setup_source("", "main"), {})
    assert calls == []


def test_the_address_stands_in_one_place():
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    assert address()["url"] == url.rstrip("/")


def test_the_link_opens_the_notebook_in_colab():
    link = "https://colab.research.google.com/github/someone/deep-clustering-book"
    assert f"{link}/blob/v1/book/chapters/scan.ipynb" in badge("scan", URL, "v1")
    assert badge("scan", "", "v1") == ""
    assert badge("scan", "https://example.org/book.git", "v1") == ""


def test_cells_fit_in_a_narrow_column():
    for url in ("", URL):
        assert max(map(len, setup_source(url, "main").splitlines())) <= 80
