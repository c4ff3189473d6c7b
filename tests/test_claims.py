"""The band of every claim in a chapter is one that the recorded runs support."""

import ast
import copy
import re
from dataclasses import replace

import pytest

import claims
from claims import Verdict

CHAPTERS = claims.chapters()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_bands_are_supported_by_runs_of_this_recipe_and_say_hardly_less(chapter):
    found, said = claims.load(chapter), claims.verdicts(claims.read(chapter))
    assert list(claims.faults(chapter, said, found)) == []
    settings = claims.recipe(chapter)
    assert claims.same(found["recipe"], settings), f"run python tests/claims.py {chapter}"
    for n, verdict in enumerate(said):
        raised = 0.03 if verdict.side == "at_least" else -0.03
        more = [*said[:n], replace(verdict, bound=verdict.bound + raised), *said[n + 1 :]]
        assert list(claims.faults(chapter, more, found)), verdict


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_two_kinds_of_arithmetic_are_two(chapter):
    if chapter in ("metrics", "photographs"):
        return  # nothing, or single layers: the same to the third digit in SSE4, too
    runs = [run for run in claims.load(chapter)["runs"] if run["run"] == "honest"]
    by_kind = {run["arithmetic"]: {} for run in runs}
    for run in runs:
        by_kind[run["arithmetic"]][run["seed"]] = run["values"]
    own = by_kind.pop("own")
    assert any(sum(v != own[s] for s, v in kind.items()) >= 5 for kind in by_kind.values())


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_band_in_a_figure_of_runs_is_that_of_the_claim(chapter):
    notebook = claims.read(chapter)
    for cell in notebook.cells:
        if "spread(evidence(" in cell.source:
            claim = re.search(r'claim = "(.+)"', cell.source).group(1)
            bound = float(re.search(r"claim\), ([-\d.]+), claim\)", cell.source).group(1))
            bands = [v.bound for v in claims.verdicts(notebook) if re.fullmatch(v.pattern, claim)]
            assert bands == [bound] or (bands, bound) == ([], 0)  # a claim given up: nothing gained


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_claim_needs_no_name_from_a_figure(chapter):
    """Runs for the evidence skip the figures: a `k` set in one would be another one without it."""
    cells = [c for c in claims.read(chapter).cells if c.cell_type == "code"]
    last = max(n for n, cell in enumerate(cells) if "verdict" in claims.tags(cell))
    drawn: set[str] = set()
    for cell in cells[: last + 1]:
        names = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Name)]
        made = {n.id for n in names if isinstance(n.ctx, ast.Store)}
        if "figure" in claims.tags(cell):
            drawn |= made
        else:
            assert not drawn & {n.id for n in names} - made, cell.source
            drawn -= made


# ---------------------------------------------------------------- by hand


def test_reach_by_hand():
    v = [0.8, 0.9, 1.0]  # mean .9, deviation .1
    assert claims.reached(v, "at_least", 2.0, worst=True) == pytest.approx(0.7)
    assert claims.reached(v, "at_least", 0.5, worst=True) == 0.8
    assert claims.reached(v, "at_least", 2.0, worst=False) == pytest.approx(1.1)
    assert claims.reached(v, "at_most", 2.0, worst=True) == pytest.approx(1.1)
    assert claims.reached(v, "at_most", 0.5, worst=False) == 0.8


def _file(monkeypatch, honest, broken):
    """A chapter with one claim, `gain`, of as many runs as are planned."""
    monkeypatch.setattr(claims, "sabotages", lambda chapter: {"lr 0": {}})
    given = {"honest": honest, "lr 0": broken}
    runs = []
    for name, seed, arithmetic, threads in claims.plan("x"):
        value = given[name][seed % len(given[name])]
        kind = {"run": name, "seed": seed, "arithmetic": arithmetic, "threads": threads}
        runs.append({**kind, "values": {"gain": value}})
    return {"recipe": {}, "runs": runs}


@pytest.mark.parametrize(
    ("bound", "honest", "broken", "fault"),
    [
        (0.3, [0.5, 0.52], [0.1, 0.12], ""),
        (0.48, [0.5, 0.52], [0.1, 0.12], "where honest runs support 0.4"),
        (0.3, [0.5] * 9 + [0.29], [0.1, 0.12], "where honest runs support"),
        (0.12, [0.5, 0.52], [0.1, 0.12], "no sabotage misses"),
        (0.3, [0.5, 0.52], [0.1, 0.31], "no sabotage misses"),
        (0.3, [0.5, None], [0.1, 0.12], "where honest runs support"),
        (0.3, [0.5, 0.52], [None], ""),
    ],
)
def test_faults_by_hand(monkeypatch, bound, honest, broken, fault):
    found = _file(monkeypatch, honest, broken)
    said = list(claims.faults("x", [Verdict("gain", "at_least", bound)], found))
    assert bool(said) == bool(fault)
    assert fault in " ".join(said)


def test_what_is_missing_is_a_fault(monkeypatch):
    found = _file(monkeypatch, [0.5, 0.52], [0.1, 0.12])
    said = [Verdict("gain", "at_least", 0.3)]
    assert "no band without a file" in next(claims.faults("x", said, {}))
    less = copy.deepcopy(found)
    less["runs"].pop()
    assert "lacks 1 runs" in next(claims.faults("x", said, less))
    assert "no recorded claim reads" in next(
        claims.faults("x", [Verdict("gains", "at_least", 0.3)], found)
    )
    monkeypatch.setattr(claims, "sabotages", lambda chapter: {"lr 0": {}, "no trick": {}})
    assert "lacks 3 runs" in next(claims.faults("x", said, found))


def test_verdicts_are_read_from_the_source():
    cell = claims.nbformat.v4.new_code_cell(
        "verdict('a (b)', x, at_least=0.5, claimed=claimed)\n"
        "for name in names:\n    verdict(f'{name} gains', y, at_most=0.1)",
        metadata={"tags": ["verdict"]},
    )
    notebook = claims.nbformat.v4.new_notebook(cells=[cell])
    first, second = claims.verdicts(notebook)
    assert first == Verdict(r"a\ \(b\)", "at_least", 0.5)
    assert (second.pattern, second.side, second.bound) == (r".+\ gains", "at_most", 0.1)
    found = {"runs": [{"values": {"a (b)": 1.0, "SwAV gains": 0.0}}]}
    assert claims.claims(found, second) == ["SwAV gains"]
