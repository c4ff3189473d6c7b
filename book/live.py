"""`make book`: run every chapter live on a copy and build the site from what just ran.

It always ends with a book. A page with claims that do not hold in this run says so at its top; a
chapter that could not be executed shows its committed outputs, and says so too.

Exit status: 0 every chapter ran, even if claims do not hold (they are printed: an unlucky draw is
a result, and the book reports it), 1 there is no site, 2 there is one, but a chapter could not be
executed. `make` turns both into 2.
"""

import os
import shutil
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from dcl.notebook.chapter import not_held
from notebooks import chapters, normalised, read, write
from tables import chapter_lines

ROOT = Path(__file__).resolve().parent.parent
LIVE = ROOT / "_build" / "live"
SHORT = 10  # lines of an error that a page shows

UNLUCKY = """\
:::{{admonition}} On this machine {count}
:class: warning

This page was computed on your machine, and these claims in its text do not
hold in this run:

{claims}

Another processor, like another seed, trains another network, and this one came
out worse than the claims allow. [Recorded results](../results.md) show how much
seeds differ.
:::"""

NOT_RUN = """\
:::{{admonition}} On this machine this chapter could not be executed
:class: danger

The outputs below came with the book, from a run on another machine. The error
here was:

{complaint}
:::"""


def execute(name: str) -> str:
    """Execute one chapter in a process of its own; return its error message, or ""."""
    command = [sys.executable, ROOT / "book" / "notebooks.py", "run", name]
    command += ["--out", LIVE / "book" / "chapters", "--results", LIVE / "results" / name]
    process = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if process.returncode == 0:
        return ""
    # a killed process leaves no last words
    return process.stderr.strip() or f"{name} ended with status {process.returncode}"


def run_chapter(name: str) -> tuple[str, list[str], str]:
    """Run a chapter and prepare its page; whatever happens to it, the other chapters continue.

    Returns what to print, the claims that do not hold, and why it could not be executed.
    """
    start = time.perf_counter()
    try:
        complaint = execute(name)
        if not complaint:
            return *finish(name, time.perf_counter() - start), ""
    except Exception as error:
        complaint = f"{name}: {type(error).__name__}: {error}"
    try:
        notebook = read(ROOT / "book" / "chapters" / f"{name}.ipynb")
    except Exception:  # even a damaged file must not cost the site
        notebook = new_notebook(cells=[new_markdown_cell(f"# {name}\n\nIts file is damaged.")])
    # without the source of the cell, which is on the page
    told = [line for line in complaint.splitlines() if not line.startswith("    ")]
    note(notebook, name, NOT_RUN.format(complaint=block(told[-SHORT:])))
    return f"{name:<16} {time.perf_counter() - start:5.0f} s  FAILED", [], complaint


def finish(name: str, seconds: float) -> tuple[str, list[str]]:
    """Prepare the page of a chapter that ran; return what to print and claims that do not hold."""
    lines = chapter_lines(name, seconds, LIVE / "results" / name)
    notebook = read(LIVE / "book" / "chapters" / f"{name}.ipynb")
    claims = not_held(notebook)
    if claims:
        note(notebook, name, UNLUCKY.format(count=count(claims), claims=block(claims)))
        head, *numbers = lines.splitlines()
        lines = "\n".join([f"{head}  {count(claims)}", block(claims), *numbers])
    return lines, claims


def note(notebook: NotebookNode, name: str, text: str) -> None:
    """Write a notebook as the page of a chapter, with a note below its title."""
    title, _, rest = notebook.cells[0].source.partition("\n")
    notebook.cells[0].source = f"{title}\n\n{text}\n\n{rest.lstrip()}"
    write(normalised(notebook), LIVE / "book" / "chapters" / f"{name}.ipynb")


def block(lines: list[str]) -> str:
    """A block of code, indented, since one of the lines could be a fence."""
    return textwrap.indent("\n".join(lines), "    ")


def count(claims: list[str]) -> str:
    return f"{len(claims)} {'claim does' if len(claims) == 1 else 'claims do'} not hold"


def build_site() -> str:
    """Build _build/html from the live copies; return the errors, or ""."""
    command = [Path(sys.executable).parent / "jupyter-book", "build", LIVE / "book"]
    command += ["--path-output", ROOT, "--all", "-q"]
    process = subprocess.run(command, capture_output=True, text=True)
    return process.stdout + process.stderr if process.returncode else ""


def main() -> int:
    start = time.perf_counter()
    shutil.rmtree(LIVE, ignore_errors=True)
    LIVE.mkdir(parents=True)
    shutil.copy(ROOT / "_config.yml", LIVE)
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.tmp")
    shutil.copytree(ROOT / "book", LIVE / "book", ignore=ignored)
    names = list(chapters(LIVE / "book"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = 2 if (cores or 1) >= 2 else 1
    print(f"Running {len(names)} chapters on this machine, {workers} at a time", flush=True)
    unlucky, failures = [], []
    with ThreadPoolExecutor(workers) as pool:
        # the comparison trains every method, so it starts first
        for lines, claims, complaint in pool.map(run_chapter, reversed(names)):
            print(lines, flush=True)
            unlucky += claims
            failures += [complaint] if complaint else []
    for complaint in failures:
        print(f"\n{complaint}", file=sys.stderr)
    if complaint := build_site():
        print(f"The site could not be built:\n{complaint}", file=sys.stderr)
        return 1
    minutes = (time.perf_counter() - start) / 60
    page = ROOT / "_build" / "html" / "index.html"
    if unlucky:
        print(f"\n{count(unlucky)} on this machine; the pages of their chapters say so")
    print(f"\nThe book is ready ({minutes:.1f} min). Open {page.as_uri()}", flush=True)
    if failures:
        told = f"{len(failures)} of {len(names)} chapters could not be executed"
        print(f"{told}: their pages show the outputs that came with the book", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
