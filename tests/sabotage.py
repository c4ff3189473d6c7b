"""Run a chapter with one thing broken on purpose, up to its last verdict.

python tests/sabotage.py swav "no sinkhorn"

A verdict is worth something only if a run that cannot work fails it. What to break stands in
tests/methods/sabotage_<stem>.json, next to the method's tests:

{"lr 0": {"after": "config", "code": "config = replace(config, lr=0.0, epochs=1)"},
 "blind": {"replace": {"old text": "new text"}}}
"""

import copy
import json
import os
import pkgutil
import sys
from itertools import islice
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

import dcl.recipes
from dcl.notebook.chapter import NOT_HELD, not_held

TESTS = Path(__file__).resolve().parent
CHAPTERS = TESTS.parent / "book" / "chapters"
METHODS = [found.name for found in pkgutil.iter_modules(dcl.recipes.__path__)]


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def sabotages(chapter: str) -> dict[str, dict]:
    """What to break in this chapter, by name; empty when nothing is written down."""
    path = TESTS / "methods" / f"sabotage_{chapter}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def sabotaged(notebook: NotebookNode, how: dict) -> NotebookNode:
    """A copy that ends with the last verdict, draws nothing and has the sabotage in it."""
    notebook = copy.deepcopy(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    verdicts = [k for k, cell in enumerate(cells) if "verdict" in tags(cell)]
    if not verdicts:
        raise ValueError("the chapter has no cell with the tag verdict")
    cells = [cell for cell in cells[: verdicts[-1] + 1] if "figure" not in tags(cell)]
    if "replace" in how:
        for old, new in how["replace"].items():
            if not any(old in cell.source for cell in cells):
                raise ValueError(f"no cell before the verdicts contains {old!r}")
            for cell in cells:
                cell.source = cell.source.replace(old, new)
    else:
        places = [k for k, cell in enumerate(cells) if how["after"] in tags(cell)]
        if not places:
            raise ValueError(f"no cell before the verdicts has the tag {how['after']!r}")
        code = how["code"] if isinstance(how["code"], str) else "\n".join(how["code"])
        cells.insert(places[0] + 1, nbformat.v4.new_code_cell(code))
    for cell in cells:
        cell.outputs, cell.execution_count = [], None
    notebook.cells = cells
    return notebook


def outcome(notebook: NotebookNode, folder: Path) -> tuple[bool, str]:
    """Run it; return whether a claim did not hold, and what happened in words."""
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=600, allow_errors=True, resources=place)
    client.execute()
    # a claim that failed before an error has noticed
    claims = not_held(notebook)
    words = [NOT_HELD + claim for claim in claims]
    raised = ((c, o) for c in notebook.cells for o in c.outputs if o.output_type == "error")
    for cell, error in islice(raised, 1):
        where = "a verdict cell" if "verdict" in tags(cell) else "another cell"
        words += [f"{where} raised {error.ename}: {error.evalue}\n{cell.source}"]
    return bool(claims), "\n".join(words) or "all verdicts held, although the run was sabotaged"


def run(chapter: str, name: str) -> tuple[bool, str]:
    notebook = nbformat.read(CHAPTERS / f"{chapter}.ipynb", as_version=4)
    return outcome(sabotaged(notebook, sabotages(chapter)[name]), CHAPTERS)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    good, words = run(*sys.argv[1:])
    print(f"{'noticed' if good else 'NOT NOTICED'}: {words}")
    sys.exit(not good)
