"""Every verdict is worth something: a run that cannot work does not pass it."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from dcl.methods import chapter_of
from dcl.notebook.chapter import NOT_HELD
from sabotage import CHAPTERS, METHODS, outcome, run, sabotaged, sabotages

EXPLAIN = sorted({chapter_of(method) for method in METHODS})
# one of each chapter, the shortest; all of them, with several seeds, are in the files of claims.py
RUNS = [
    (path.stem, next(iter(sabotages(path.stem))))
    for path in sorted(CHAPTERS.glob("*.ipynb"))
    if sabotages(path.stem)
]


@pytest.mark.parametrize("chapter", EXPLAIN)
def test_each_method_chapter_has_its_sabotages(chapter):
    assert next(iter(sabotages(chapter))) == "lr 0", f"{chapter} does not begin with 'lr 0'"
    assert len(sabotages(chapter)) >= 2, f"{chapter} has no sabotage of its own trick"


@pytest.mark.parametrize("chapter, name", RUNS)
def test_a_verdict_notices(chapter, name):
    noticed, words = run(chapter, name)
    assert noticed, f"{chapter}, {name}: {words}"


def _chapter() -> nbformat.NotebookNode:
    def cell(source, *tags):
        return new_code_cell(source, metadata={"tags": list(tags)})

    return new_notebook(
        cells=[
            cell("gain = 1", "imports"),
            cell("raise RuntimeError('figures are left out')", "figure"),
            cell(
                "from dcl.notebook.chapter import verdict\nverdict('it gains', gain, at_least=0.5)",
                "verdict",
            ),
            cell("raise RuntimeError('what follows the verdicts is left out')"),
        ]
    )


@pytest.mark.parametrize(
    "how, noticed, words",
    [
        ({"after": "imports", "code": "gain = 0"}, True, f"{NOT_HELD}it gains"),
        ({"replace": {"gain = 1": "gain = 0"}}, True, f"{NOT_HELD}it gains"),
        ({"after": "imports", "code": "pass"}, False, "all verdicts held"),
        ({"after": "imports", "code": ["1", "1 / 0"]}, False, "another cell raised ZeroDivision"),
        ({"after": "imports", "code": "del gain"}, False, "a verdict cell raised NameError"),
        ({"replace": {"at_least=0.5)": "at_least=2)\n1 / 0"}}, True, "raised ZeroDivision"),
    ],
)
def test_the_test_tells_a_failed_verdict_from_other_errors(tmp_path, how, noticed, words):
    found, said = outcome(sabotaged(_chapter(), how), tmp_path)
    assert found is noticed
    assert words in said


def test_a_sabotage_that_finds_no_place_is_an_error():
    with pytest.raises(ValueError, match="has the tag 'config'"):
        sabotaged(_chapter(), {"after": "config", "code": "pass"})
    with pytest.raises(ValueError, match="contains 'nothing'"):
        sabotaged(_chapter(), {"replace": {"nothing": "at all"}})
