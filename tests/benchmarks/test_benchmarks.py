"""The benchmarks' arithmetic, command and page; their times are not judged here."""

import json
import os
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import benchmarks
import timings
from benchmarks import (
    Claim,
    Outcome,
    augment,
    clustering,
    cpu_seconds,
    cpu_times,
    memory,
    number,
    peer,
    ratio,
    rows,
    save,
    show,
    wall_times,
)
from benchmarks.__main__ import HERE, found, main

PAGE = timings.ROOT / "book" / "speed.md"

# Arithmetic


def test_middle_and_quartiles_beside_the_first():
    times = {"dcl": [4.0, 1.0, 3.0, 2.0, 5.0], "other": [8.0, 3.0, 9.0, 6.0, 20.0]}
    first, second = rows(times, "work", {"dcl": [5.0, 7.0], "other": [9.0, 9.0]})
    assert (first.median, first.low, first.high, first.n) == (3.0, 2.0, 4.0, 5)
    assert first.ratio is None and first.cpu == 6 and first.group == second.group == "work"
    assert second.ratio == (3.0, 3.0, 3.0) and second.cpu == 9
    assert " 3.00 " in show(Outcome([first], [], {}, []))


def test_a_ratio_is_taken_round_by_round():
    claim = ratio("a / b", [1.0, 2.0, 4.0], [4.0, 4.0, 4.0], at_most=0.4, group="g")
    assert (claim.value, claim.low, claim.high, claim.n) == (0.5, 0.375, 0.75, 3)
    assert not claim.holds and claim.group == "g"
    # A machine twice as slow in one round changes no ratio; the ratio of the middles it would.
    assert ratio("", [1, 20, 3], [2, 40, 6]).value == 0.5
    with pytest.raises(ValueError, match="zip"):
        ratio("", [1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    "value, most, least, holds, bound",
    [
        (0.9, 1.0, None, True, "at most 1"),
        (1.1, 1.0, None, False, "at most 1"),
        (2.0, None, 2.0, True, "at least 2"),
        (1.9, None, 2.0, False, "at least 2"),
        (5.0, None, None, True, ""),
        (3.0, 2.0, 1.0, False, "at most 2 and at least 1"),
    ],
)
def test_bounds_both_ways(value, most, least, holds, bound):
    claim = Claim("x", value, most, least)
    assert (claim.holds, claim.bound) == (holds, bound)
    shown = show(Outcome([], [claim], {}, []))
    assert ("MISSED" in shown) == (not holds) and ("reached" in shown) == (holds and bound != "")


def test_numbers_keep_three_digits():
    values = (0, 0.01234, 1.234, 12.34, 123.4, 1234.4, 99_999, -0.5, 3.2e-8)
    texts = ["0", "0.0123", "1.23", "12.3", "123", "1,234", "99,999", "-0.500", "3e-8"]
    assert [number(value) for value in values] == texts


# Clocks


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_candidates_take_turns_and_short_work_is_repeated():
    order = []
    work = {name: lambda name=name: (order.append(name), burn(0.06)) for name in "ab"}
    times = cpu_times(work, 2)
    assert order == [*"aaabbb", *"abab"]  # warmed up, then in turns
    assert all(len(values) == 2 and min(values) >= 59 for values in times.values())
    calls = []
    cpu_times({"short": lambda: (calls.append(1), burn(0.005))}, 2)
    assert len(calls) > 3 + 2 * 5


def test_the_clock_of_the_wall_counts_waiting_and_cpu_that_of_children():
    program = "import time\nwhile time.process_time() < .12: pass"
    child = [sys.executable, "-S", "-c", program]
    work = {"waits": lambda: time.sleep(0.06), "has a child": lambda: os.spawnv(0, child[0], child)}
    wall, cpu = wall_times(work, 2)
    assert min(wall["waits"]) >= 59 and max(cpu["waits"]) < 50
    assert min(cpu["has a child"]) >= 100


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_living_children_count(monkeypatch):
    monkeypatch.setattr("multiprocessing.active_children", list)
    alone = cpu_seconds()
    known = [SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=2**22 + 1)]  # itself, and none
    monkeypatch.setattr("multiprocessing.active_children", lambda: known)
    assert cpu_seconds() - alone == pytest.approx(time.process_time(), abs=0.1)


# The command


def test_benchmarks_are_found_from_their_files(capsys):
    assert {"augment", "clustering", "memory"} <= set(found()) and all(found().values())
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert "augment" in printed and "only by name" in printed


def test_bad_arguments(capsys):
    for arguments, said in (
        (["augment", "--rounds", "1"], "--rounds must be at least 2; got 1"),
        (["nothing"], "NAME must be one of augment"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert said in capsys.readouterr().err


BENCHMARKS = {
    "broken": "def run(rounds):\n    raise RuntimeError('out of order')",
    "good": "from benchmarks import Outcome, row\n"
    "def run(rounds):\n    return Outcome([row('a', [1.0] * rounds)], [], {}, [])",
    "lacking": "from benchmarks import Absent\ndef run(rounds):\n    raise Absent('needs a GPU')",
    "memory": "assert False, 'runs by name only'",
}


def test_one_that_fails_or_is_skipped_stops_no_other(monkeypatch, tmp_path, capfd):
    folder, out = tmp_path / "benchmarks", tmp_path / "out"
    folder.mkdir()
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(HERE / name, folder)
    for name, text in BENCHMARKS.items():
        (folder / f"{name}.py").write_text(f'"""{name}"""\n{text}\n')
    monkeypatch.setattr(benchmarks.__main__, "HERE", folder)
    assert main(["--rounds", "3", "--out", str(out)]) == 2
    printed = capfd.readouterr()
    assert "skipped: needs a GPU" in printed.out and "broken FAILED" in printed.out
    assert "out of order" in printed.err and "by name only" not in printed.err
    assert [path.name for path in out.iterdir()] == ["good.json"]
    assert json.loads((out / "good.json").read_text())["rows"][0]["n"] == 3


@pytest.mark.parametrize(("value", "code"), [(0.1, 0), (0.3, 1)])
def test_a_missed_figure_is_the_exit_status(monkeypatch, tmp_path, capsys, value, code):
    outcome = Outcome([], [Claim("a / b", value, 0.2)], {}, [])
    monkeypatch.setattr(augment, "run", lambda rounds: outcome)
    assert main(["augment", "--out", str(tmp_path)]) == code
    assert ("MISSED" in capsys.readouterr().out) == bool(code)


def test_what_is_written_is_what_was_found(tmp_path):
    claims = [ratio("a / b", [1.0, 2.0], [2.0, 2.0], at_most=0.5), Claim("c", 3.0, at_least=2.0)]
    found_ = rows({"dcl": [1.0, 2.0], "other": [2.0, 4.0]}, "work", unit="images/s")
    outcome = Outcome(found_, claims, {"n": 3}, ["said"], "ms")
    written = json.loads(save("name", outcome, tmp_path / "new").read_text())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["name.json"]
    verdicts = [(claim.pop("bound"), claim.pop("reached")) for claim in written["claims"]]
    assert verdicts == [("at most 0.5", False), ("at least 2", True)]
    assert written["versions"].pop("torch") and written["machine"].pop("processor")
    expected = json.loads(json.dumps(asdict(outcome)))
    assert {key: written[key] for key in expected} == expected
    assert written["command"] == "python -m benchmarks name"


# What is measured


def test_augment_measures(monkeypatch):
    monkeypatch.setattr(augment, "BATCH", 2)
    monkeypatch.setattr(augment, "cpu_times", once)
    outcome = augment.run(2)
    assert {augment.OURS, augment.PIL, augment.TENSOR} <= {r.name for r in outcome.rows}
    assert {claim.text for claim in outcome.claims} >= {f"one view: time of dcl / {augment.PIL}"}


def small(monkeypatch):
    monkeypatch.setattr(clustering, "KMEANS", [(3, 90, 4)])
    monkeypatch.setattr(clustering, "STARTS", [("made", 60, 4)])
    monkeypatch.setattr(clustering, "NEIGHBOURS", [("cosine", 60, 4), ("l2", 60, 4)])
    monkeypatch.setattr(clustering, "SINKHORN", [(16, 5)])
    monkeypatch.setattr(clustering, "ACCURACY", [(3, 50)])
    monkeypatch.setattr(clustering, "cpu_times", once)
    monkeypatch.setattr(clustering, "wall_times", lambda work, n: (once(work, n), once(work, n)))


def once(work, rounds):
    for call in work.values():
        call()
    return {name: [1.0] * rounds for name in work}


def test_clustering_candidates_do_the_same_work(monkeypatch):
    small(monkeypatch)
    pytest.importorskip("faiss")
    outcome = clustering.run(2)
    value = {(c.group, c.text): c.value for c in outcome.claims}

    def values(start):
        return [v for (_, text), v in value.items() if text.startswith(start)]

    assert values("share that") == [1, 1, 1, 1]
    assert values("objective")[:2] == pytest.approx([1, 1], rel=1e-3)
    assert all(0 <= v < 1e-5 for v in values("largest difference"))
    bounded = {c.text: c.at_most for c in outcome.claims if c.at_most is not None}
    assert bounded["time, dcl / faiss, one thread"] == 1
    assert bounded["objective, dcl / faiss"] == 1.01


def test_an_absent_peer_is_said_and_left_out(monkeypatch):
    small(monkeypatch)
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setitem(sys.modules, "ot", None)
    outcome = clustering.run(2)
    assert "faiss is not installed: not compared" in outcome.remarks
    assert "POT is not installed: not compared" in outcome.remarks
    names = {r.name for r in outcome.rows}
    assert "dcl" in names and "faiss" not in names
    assert not any("POT" in name for name in names)
    assert not any("faiss" in c.text or "Sinkhorn" in c.group for c in outcome.claims)
    assert benchmarks.installed("no-such-package")["no-such-package"] == "absent"
    assert peer("json", remarks := []) is json and remarks == []


def test_memory_measures_both_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "DIFFERENT", 10)
    monkeypatch.setattr(memory, "NAMES", 2)
    monkeypatch.setattr(memory, "pools", lambda files, n: {"1 thread": [float(len(files))] * n})
    trained = []
    monkeypatch.setattr(memory, "one_epoch", lambda images: trained.append(len(images)))

    def child(folder, root, what):  # not in a process of its own, to save an import
        return memory.measured(Path(folder), Path(root), train=what == "train")

    monkeypatch.setattr(memory, "child", child)
    outcome = memory.run(2)
    value = {(c.group, c.text): c.value for c in outcome.claims}
    first, second = dict.fromkeys(group for group, _ in value)
    for load in (first, second):
        assert value[load, "images"] == 20
        assert 0 < value[load, "own, GB"] <= value[load, "peak, GB"]
    assert (second, "epoch, s") in value and (first, "epoch, s") not in value and trained == [20]
    assert [c.text for c in outcome.claims if c.bound] == ["own, GB"] * 2
    assert outcome.unit == benchmarks.WALL and outcome.rows[0].median == 10


def test_memorys_epoch_and_pools(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "DIFFERENT", 8)
    monkeypatch.setattr(memory, "NAMES", 1)
    monkeypatch.setattr(memory, "ProcessPoolExecutor", lambda n, mp_context: ThreadPoolExecutor(n))
    memory.photographs(tmp_path / "photographs")
    files = sorted((tmp_path / "photographs" / "00").iterdir())
    assert len(files) == 8 and memory.decode_all(files[:3]) == 9  # channels
    root = tmp_path / "root"
    assert memory.child(str(tmp_path / "photographs"), str(root), "load")["images"] == 8
    times = memory.pools(files, 2)
    assert set(map(len, times.values())) == {2} and len(times) == 3
    memory.one_epoch(torch.randint(256, (8, 3, 64, 64), dtype=torch.uint8))


# The page


@pytest.fixture
def folder(tmp_path):
    claims = [
        Claim("dcl / faiss", 0.75, 1.0, None, 0.7, 0.8, 5, group="k-means"),
        Claim("theirs / dcl", 1.5, None, 2.0, group="k-means"),
    ]
    found_ = [
        *rows({"dcl": [3.0, 4.0, 5.0], "faiss": [8.0, 8.0, 8.0]}, "K = 10"),
        *rows({"dcl": [30.0] * 3}, "K = 100"),
        *rows({"one": [7.0] * 3}, "K = 10", {"one": [6.0] * 3}, "milliseconds of wall time"),
    ]
    save("clustering", Outcome(found_, claims, {}, ["ot is not installed"]), tmp_path)
    return tmp_path


def test_the_page_has_the_numbers_of_the_files(folder):
    text = timings.content("clustering", folder)
    assert "| K = 10 | 4.00 ± 12 % | 8.00 ± <1 % |\n| K = 100 | 30.0 ± <1 % | – |" in text
    assert "median of 3 rounds" in text and "- ot is not installed" in text
    assert "| one | 7.00 ± <1 % (6.00) |" in text and "CPU time of all threads" in text
    assert (
        "| **k-means** |  |  |\n| dcl / faiss | 0.750 (0.700 to 0.800) | at most 1: reached |"
        in text
    )
    assert "| theirs / dcl | 1.50 | at least 2: **missed** |" in text
    assert "`python -m benchmarks clustering`" in text and "torch 2" in text


def test_a_gpu_that_nobody_had_is_not_made_up(tmp_path):
    said = "Not run on a GPU yet: `python -m benchmarks gpu`."
    assert timings.content("gpu", tmp_path) == said


def test_every_benchmark_has_its_place_on_the_page():
    marked = re.findall(r"<!-- timings: (\w+) start -->", PAGE.read_text())
    assert {*marked} == {*found(), "toolbox"}


def test_kept_tables_have_the_numbers_of_their_files():
    """Of the measurements whose programs are gone: nothing rewrites these tables."""
    text = PAGE.read_text()
    for name in ("ladder", "growth"):
        kept = json.loads((timings.FOLDER / f"{name}.json").read_text())
        assert f"- `{kept['command']}`" in text
        for rung in kept["settings"].get("rungs", []):
            start = f"| {rung['name']} | "
            (line,) = [line for line in text.splitlines() if line.startswith(start)]
            assert line.endswith(f" | {number(rung['over the floor'])} |")
            assert f" × {rung['measured'] or 0:.2f} " in line or rung["measured"] is None
        for claim in kept["claims"] if name == "growth" else []:
            value = f"{claim['value']:.2f} ({claim['low'] or 0:.2f} to "
            value = value if claim["low"] is not None else number(claim["value"])
            start = f"| {claim['group']} ("
            (line,) = [line for line in text.splitlines() if line.startswith(start)]
            assert f" {value}" in line, claim
