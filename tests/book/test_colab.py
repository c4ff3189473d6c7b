"""The set-up cell: nothing happens outside Colab; in Colab the book is fetched, nothing else."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

from notebooks import setup_source

URL = "https://github.com/someone/deep-clustering-book"


@pytest.fixture
def calls(monkeypatch):
    """Where the book is not yet: record what would be run, run nothing."""
    found = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: found.append((command, check)))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    return found


@pytest.fixture
def colab(calls, monkeypatch):
    """A stand-in for the module by which Colab is recognised."""
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))


@pytest.mark.parametrize("url", ["", URL])
def test_outside_colab_nothing_happens(url, calls):
    before = list(sys.path)
    exec(setup_source(url, "main"), {})
    assert calls == [] and sys.path == before


def test_in_colab_it_clones_a_tag_once(calls, colab, monkeypatch):
    source, place = setup_source(URL, "v0.1.0"), "/content/deep-clustering-book"
    assert max(map(len, source.splitlines())) <= 76
    exec(source, {})
    ((clone, check),) = calls
    told = " ".join(map(str, clone))
    assert told == f"git clone --quiet --depth 1 --branch v0.1.0 {URL} {place}" and check
    assert sys.path[0] == place
    monkeypatch.setattr(Path, "exists", lambda path: True)
    exec(source, {})
    assert len(calls) == 1


def test_while_the_address_is_unknown_the_cell_says_how_to_set_it(calls, colab):
    with pytest.raises(SystemExit, match="repository: url in _config.yml"):
        exec(setup_source("", "main"), {})
    assert calls == []
