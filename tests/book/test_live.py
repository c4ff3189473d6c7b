"""`make book` ends with a book: here of small chapters, run and built for real."""

import html
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import live
from dcl.notebook.chapter import NOT_HELD
from notebooks import ROOT, normalised, read, write

VERDICTS = """\
from dcl.notebook.chapter import verdict
verdict("it learns", {learns}, at_least=0.5)
print(end="", flush=True)
verdict("it is `small`", 0.1, at_most=0.2)"""
CHAPTERS = {
    "00-lucky": VERDICTS.format(learns=0.6),
    "01-unlucky": VERDICTS.format(learns=0.4567),
    "02-raises": "raise ValueError('no ```such\\n::: thing')",
    "03-dies": "import os\nos._exit(3)",
}
DAMAGED = "04-damaged"  # its file is no notebook
COMMITTED = "what was committed\n"
UNLUCKY = "it learns: 0.457 >= 0.5"


def make(root, chapters):
    """Write a book whose chapters have a title and one cell of code."""
    (root / "book" / "chapters").mkdir(parents=True)
    shutil.copy(ROOT / "book" / "notebooks.py", root / "book")
    config = 'execute: {execute_notebooks: "off"}\nrepository: {url: "", branch: main}\n'
    (root / "_config.yml").write_text(f"title: A book\n{config}")
    pages = ["results", *(f"chapters/{name}" for name in chapters)]
    toc = "".join(f"- file: {page}\n" for page in pages)
    (root / "book" / "_toc.yml").write_text(f"format: jb-book\nroot: index\nchapters:\n{toc}")
    for page in ("index", "results"):
        (root / "book" / f"{page}.md").write_text(f"# The {page}\n")
    for name, code in chapters.items():
        cells = [
            new_markdown_cell(f"# Title {name}\n\nIts first words."),
            new_code_cell("results_dir = ''", metadata={"tags": ["parameters"]}),
            new_code_cell(code, outputs=[new_output("stream", text=COMMITTED)]),
        ]
        notebook = normalised(new_notebook(cells=cells))
        write(notebook, root / "book" / "chapters" / f"{name}.ipynb")


def make_book(root):
    """The exit status of `make book` and what it said, to stdout and to stderr."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.setattr(live, "ROOT", root)
        patch.setattr(live, "LIVE", root / "_build" / "live")
        with redirect_stderr(StringIO()) as err:
            status = live.main()
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def ran(root):
    make(root, {**CHAPTERS, DAMAGED: ""})
    (root / "book" / "chapters" / f"{DAMAGED}.ipynb").write_text("{")
    return make_book(root)


def first_and_last(root, name):
    notebook = read(root / "_build" / "live" / "book" / "chapters" / f"{name}.ipynb")
    assert normalised(notebook) == notebook
    return notebook.cells[0].source, notebook.cells[-1].outputs[0].text


def test_what_could_not_be_executed_is_told_after_the_site_is_built(ran, root):
    status, out, err = ran
    assert status == 2
    assert (root / "_build" / "html" / "index.html").exists()
    assert re.search(r"^02-raises +\d+ s  FAILED\n(.*\n)*01-unlucky", out, re.M)
    assert "\nThe book is ready" in out
    assert "02-raises failed in cell 4:" in err and "    raise ValueError(" in err
    assert "03-dies failed in DeadKernelError" in err
    told = "3 of 5 chapters could not be executed: their pages show the outputs that came with the"
    assert err.endswith(f"{told} book\n")
    assert "00-lucky" not in err and "01-unlucky" not in err


@pytest.mark.parametrize(
    "name, note, words",
    [
        ("01-unlucky", "1 claim does not hold", UNLUCKY),
        ("02-raises", "this chapter could not be executed",
         "02-raises failed in cell 4:\nValueError: no ```such\n::: thing\n"),
        ("03-dies", "this chapter could not be executed", "03-dies failed in DeadKernelError"),
    ],
)  # fmt: skip
def test_its_page_says_so_below_its_title(ran, root, name, note, words):
    source, output = first_and_last(root, name)
    assert source.startswith(f"# Title {name}\n\n:::{{admonition}}")
    assert source.endswith("\n:::\n\nIts first words.")
    page = (root / "_build" / "html" / "chapters" / f"{name}.html").read_text()
    part = page[page.index("<h1>Title") : page.index("Its first words")]
    assert len(re.findall(r'<div class="(.*?)admonition', part)) == 1
    text = html.unescape(re.sub(r"<[^>]+>", "", part))
    assert f"On this machine {note}" in text and words in text
    if name == "01-unlucky":
        assert output == f"{NOT_HELD}{UNLUCKY}\nholds: it is `small`: 0.1 <= 0.2\n"
        assert "it is `small`" not in text and 'href="../results.html"' in part
    else:
        assert output == COMMITTED


def test_a_chapter_whose_file_is_damaged_has_a_page(ran, root):
    page = (root / "_build" / "html" / "chapters" / f"{DAMAGED}.html").read_text()
    assert "On this machine this chapter could not be executed" in page
    assert "NotJSONError" in page and "Its file is damaged." in page


def test_a_claim_that_does_not_hold_is_counted_and_listed(ran):
    _, out, _ = ran
    assert re.search(
        rf"^01-unlucky +\d+ s  1 claim does not hold\n    {re.escape(UNLUCKY)}\n00-lucky", out, re.M
    )
    assert "\n1 claim does not hold on this machine; the pages of their chapters say so" in out
    assert live.count(["a", "b"]) == "2 claims do not hold"


def test_what_holds_and_what_is_committed_is_left_alone(ran, root):
    source, output = first_and_last(root, "00-lucky")
    assert source == "# Title 00-lucky\n\nIts first words."
    assert output == "holds: it learns: 0.6 >= 0.5\nholds: it is `small`: 0.1 <= 0.2\n"
    for name, code in CHAPTERS.items():
        cell = read(root / "book" / "chapters" / f"{name}.ipynb").cells[-1]
        assert (cell.source, cell.outputs[0].text) == (code, COMMITTED)


def fake(name):
    """Execute nothing: write what the chapter would print, or complain."""
    page = live.LIVE / "book" / "chapters" / f"{name}.ipynb"
    notebook = read(page)
    notebook.cells[-1].outputs[0].text = f"{NOT_HELD}{UNLUCKY}\n" * (name == "01-unlucky")
    write(notebook, page)
    if name == "03-dies":  # late: its page is no longer the committed one
        raise MemoryError("no room")
    return "it failed" if name == "02-raises" else ""


@pytest.mark.parametrize(
    "names, fault, status",
    [
        (["00-lucky"], "", 0),
        (["00-lucky", "01-unlucky"], "", 0),
        (["00-lucky", "02-raises"], "", 2),
        (["01-unlucky", "03-dies"], "", 2),
        (["00-lucky"], "no theme", 1),
        (["00-lucky", "02-raises"], "no theme", 1),
    ],
)
def test_exit_status(tmp_path, monkeypatch, names, fault, status):
    make(tmp_path, {name: CHAPTERS[name] for name in names})
    monkeypatch.setattr(live, "execute", fake)
    monkeypatch.setattr(live, "build_site", lambda: fault)
    found, out, err = make_book(tmp_path)
    assert found == status
    assert all(name in out for name in names)
    assert ("The site could not be built:\nno theme" in err) == (status == 1)
    assert ("it failed" in err) == ("02-raises" in names)
    assert ("03-dies: MemoryError: no room" in err) == ("03-dies" in names)
    for name in {"02-raises", "03-dies"} & {*names}:
        assert first_and_last(tmp_path, name)[1] == COMMITTED
    assert ("1 claim does not hold on this machine" in out) == ("01-unlucky" in names)


def test_a_process_that_was_killed_without_a_word_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "ROOT", tmp_path)
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "notebooks.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    assert live.execute("03-dies") == "03-dies ended with status -9"
    (tmp_path / "book" / "notebooks.py").write_text("import sys\nprint('told', file=sys.stderr)\n")
    assert live.execute("00-lucky") == ""
