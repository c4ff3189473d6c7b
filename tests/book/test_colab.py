"""The set-up cell: nothing happens outside Colab; there the book is found or fetched, and runs."""

import ast
import subprocess
import sys
import types
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

from notebooks import ROOT, chapters, read, setup_source, tags

URL = "https://github.com/someone/deep-clustering-book"
BOOK = "/content/deep-clustering-book"
DRIVE = "/content/drive/MyDrive/deep-clustering-book"
COLAB = (ROOT / "tests" / "notebook" / "colab.txt").read_text().splitlines()


@pytest.fixture
def calls(monkeypatch):
    """Where no book is yet, and tyro is: record what would be run, run nothing."""
    found = []
    monkeypatch.setattr(
        subprocess, "run", lambda command, check: found.append(" ".join(map(str, command)))
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
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


def test_in_colab_it_clones_a_tag_and_installs_what_is_missing(calls, colab, monkeypatch):
    source = setup_source(URL, "v0.1.0")
    assert max(map(len, source.splitlines())) <= 76
    exec(source, {})
    assert calls == [f"git clone --quiet --depth 1 --branch v0.1.0 {URL} {BOOK}"]
    assert sys.path[0] == BOOK
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(source, {})
    assert calls[2:] == [f"{sys.executable} -m pip install --quiet tyro"]


@pytest.mark.parametrize("url", ["", URL])
@pytest.mark.parametrize("place", [BOOK, DRIVE])
def test_a_book_that_is_there_is_taken(url, place, calls, colab, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == place)
    exec(setup_source(url, "main"), {})
    assert calls == [] and sys.path[0] == place


def test_without_book_and_address_the_reader_is_told_what_to_do(calls, colab):
    with pytest.raises(SystemExit, match="put the folder of the book, deep-clustering-book, into"):
        exec(setup_source("", "main"), {})
    assert calls == []


def imported(source: str) -> set[str]:
    """The top names that a source imports anywhere, dcl and the standard library left out."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found - {"dcl"} - set(sys.stdlib_module_names)


SOURCES = {path.stem: path.read_text() for path in (ROOT / "dcl").rglob("*.py")} | {
    name: "\n".join(c.source for c in read(path).cells if c.cell_type == "code")
    for name, path in chapters().items()
}


def test_colab_has_what_is_imported_or_gets_it():
    there = {line.split("==")[0].lower() for line in COLAB if line[:1] != "#"} | {"tyro"}
    packages = packages_distributions()
    lacking = {
        f"{name} in {stem}"
        for stem, source in SOURCES.items()
        for name in imported(source)
        if not {d.lower() for d in packages.get(name, [name])} & there
    }
    assert lacking == set(), "enter it in colab.txt if Colab has it, in the set-up cell if not"


def test_the_list_is_not_of_everything():
    assert imported("import faiss, os.path\nfrom jupyter_book import x") == {
        "faiss", "jupyter_book",
    }  # fmt: skip
    assert find_spec("faiss") and not any(line.startswith("faiss") for line in COLAB)


def test_chapters_begin_without_tyro():
    """Their imports succeed where it is missing: it is for the command line alone."""
    cells = [c.source for path in chapters().values() for c in read(path).cells
             if {"check", "imports"} & set(tags(c))]  # fmt: skip
    cells = [source for source in cells if "check_parameters(" not in source]
    code = "import sys; sys.modules['tyro'] = None\n" + "\n".join(cells)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
