import json
import math
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from dcl.notebook.chapter import (
    NOT_HELD,
    differences,
    evidence,
    not_held,
    scores,
    show,
    spread,
    verdict,
)

ROOT = Path(__file__).resolve().parents[2]

LEAST = {"at_least": 0.1}


@pytest.mark.parametrize(
    "value, how, told",
    [
        (0.731, LEAST, "holds: a: 0.731 >= 0.1"),
        (0.2, {"at_least": 0, "at_most": 0.25}, "holds: a: 0.2 >= 0 and <= 0.25"),
        (0.0999, LEAST, f"{NOT_HELD}a: 0.0999 >= 0.1"),
        (float("nan"), LEAST, f"{NOT_HELD}a: nan >= 0.1"),
        (0.3, {"at_most": 0.25}, f"{NOT_HELD}a: 0.3 <= 0.25"),
        (0.01, LEAST | {"claimed": False}, "not claimed in this run: a: 0.01 >= 0.1"),
    ],
)
def test_verdict_says_what_holds_and_never_stops_the_chapter(value, how, told, capsys):
    verdict("a", value, **how)
    assert capsys.readouterr().out == f"{told}\n"
    with pytest.raises(ValueError, match="needs at_least or at_most"):
        verdict("a", value)


def test_claims_that_do_not_hold_are_found_in_an_executed_notebook():
    text = f"holds: a: 1 >= 1\n{NOT_HELD}b: 0 >= 1\n"
    outputs = [new_output("display_data", {}), new_output("stream", text=text)]
    cells = [new_markdown_cell(f"{NOT_HELD}c"), new_code_cell("verdict(...)", outputs=outputs)]
    assert not_held(new_notebook(cells=cells)) == ["b: 0 >= 1"]


@pytest.mark.parametrize("value, failed", [(0.6, 0), (0.4, 1)])
def test_strict_nbval_notices_a_claim_that_no_longer_holds(tmp_path, value, failed):
    """What it measured is masked, whether it holds is not."""
    output = new_output("stream", text="holds: it learns: 0.7 >= 0.5\n")
    code = f"from dcl.notebook.chapter import verdict\nverdict('it learns', {value}, at_least=0.5)"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [new_code_cell(code, outputs=[output], execution_count=1)]
    nbformat.write(notebook, tmp_path / "chapter.ipynb")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "--nbval", tmp_path]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == failed, done.stdout
    assert (NOT_HELD in done.stdout) == bool(failed)


def test_scores_are_a_table_whose_last_row_is_bold(capsys, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda markdown: shown.append(markdown.data))
    scores({"k-means": {"ACC": 0.8, "NMI": 0.75}, "SCAN": {"ACC": 1.0, "kNN": 0.98765}})
    assert shown[0].splitlines() == [
        "|  | ACC | NMI | kNN |",
        "| --- | ---: | ---: | ---: |",
        "| k-means | .800 | .750 |  |",
        "| **SCAN** | **1.000** |  | **.988** |",
    ]
    scores({})
    assert capsys.readouterr().out == "no labels, no scores\n" and len(shown) == 1


def test_show_displays_the_real_source(capsys, monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)

    class Inner:
        def method(self):
            return 1

    show(verdict, Inner.method)
    assert shown[0].data.startswith("```python\ndef verdict(")
    assert "raise ValueError" in shown[0].data
    assert shown[1].data == "```python\ndef method(self):\n    return 1\n```"
    with pytest.raises(TypeError, match="no Python source"):
        show(len)


def test_evidence_sorts_runs_by_kind(tmp_path, monkeypatch):
    monkeypatch.setattr("dcl.notebook.chapter.CLAIMS", tmp_path)
    kinds = [("honest", "own", 1), ("honest", "avx2", 1), ("honest", "own", 2), ("lr 0", "own", 1)]
    runs = [
        {"run": name, "arithmetic": kind, "threads": threads, "values": {"gain": value}}
        for (name, kind, threads), value in zip(kinds * 2, [1, 2, 3, 4, 5, 6, 7, None])
    ]
    (tmp_path / "swav.json").write_text(json.dumps({"runs": runs}))
    found = evidence("swav", "gain")
    assert math.isnan(found["lr 0"].pop())
    assert found == {
        "honest, own": [1, 5],
        "honest, avx2": [2, 6],
        "honest, own, 2 threads": [3, 7],
        "lr 0": [4],
    }
    with pytest.raises(ValueError, match="claim must be one of gain; got 'gains'"):
        evidence("swav", "gains")


def test_spread_has_a_dot_for_each_run_and_the_band():
    runs = {"honest, own": [0.9, 0.92, math.nan], "lr 0": [0.3]}
    (ax,) = spread(runs, 0.85, "ACC").axes
    first, _, second, _, band = ax.lines  # dots and a mean for each row
    assert sorted(x for x in first.get_xdata() if x == x) == [0.9, 0.92]
    assert all(abs(y) < 0.5 for y in first.get_ydata()) and all(
        abs(y - 1) < 0.5 for y in second.get_ydata()
    )
    assert list(second.get_xdata()) == [0.3] and set(band.get_xdata()) == {0.85}
    assert first.get_color() != second.get_color()
    assert [t.get_text() for t in ax.get_yticklabels()] == list(runs)
    assert ax.yaxis_inverted() and ax.get_xlabel() == "ACC"


def test_differences_are_those_to_the_recipe_in_the_words_of_the_interval(capsys):
    differences("X", {"as in the recipe": [0.6, 0.8], "worse": [0.5, 0.7], "one seed": [0.1],
                      "like": [0.7, 0.7]})  # fmt: skip
    worse, like = capsys.readouterr().out.splitlines()
    assert worse.split() == ["X", "-", "worse", "+0.100", "±", "0.000", "beyond", "noise"]
    assert like.split() == ["X", "-", "like", "+0.000", "±", "1.271", "within", "noise"]
