"""The benchmark command lists, runs, prints and writes; its times are not judged here."""

import json

import pytest

import benchmarks
from benchmarks import Claim, Outcome, memory, row, show
from benchmarks.__main__ import found, main


def test_benchmarks_are_found_from_their_files(capsys):
    assert "augment" in found() and all(found().values())
    assert main(["--list"]) == 0
    assert "augment" in capsys.readouterr().out


def test_augment_prints_and_writes(tmp_path, capsys):
    main(["augment", "--rounds", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "augment.json").read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["augment.json"]
    for entry in written["rows"]:
        assert entry["name"] in printed and entry["n"] == 2
        assert 0 < entry["low"] <= entry["median"] <= entry["high"]
    assert written["versions"]["torch"] and written["machine"]["processor"]
    ours, theirs = (entry["median"] for entry in written["rows"][:2])
    assert written["claims"][0]["value"] == pytest.approx(ours / theirs, rel=0.5)


def test_memory_measures_both_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "DIFFERENT", 40)
    monkeypatch.setattr(memory, "NAMES", 4)
    assert main(["memory", "--rounds", "2", "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "memory.json").read_text())
    assert "images/s" in capsys.readouterr().out and written["unit"].endswith("wall time")
    loads = [value for name, value in written["settings"].items() if "load" in name]
    for load, claim in zip(loads, written["claims"], strict=True):
        assert load["images"] == 160
        assert 0 < load["own, GB"] <= load["peak, GB"] and claim["value"] == load["own, GB"]
    assert "epoch, s" in loads[1] and "epoch, s" not in loads[0]


def test_a_broken_claim_fails_the_command(monkeypatch, tmp_path, capsys):
    for value, code in ((0.1, 0), (0.3, 1)):
        outcome = Outcome([row("a", [1.0, 2.0, 3.0])], [Claim("a / b", value, 0.2)], {}, [])
        module = type("module", (), {"run": staticmethod(lambda rounds, o=outcome: o)})
        monkeypatch.setattr(benchmarks.__main__, "import_module", lambda name, m=module: m)
        assert main(["augment", "--out", str(tmp_path)]) == code
    assert "MISSED" in capsys.readouterr().out


def test_middle_and_quartiles():
    r = row("x", [4.0, 1.0, 3.0, 2.0, 5.0])
    assert (r.median, r.low, r.high, r.n) == (3.0, 2.0, 4.0, 5)
    assert " 3.00 " in show(Outcome([r], [], {}, []))


def test_bad_rounds(capsys):
    with pytest.raises(SystemExit):
        main(["augment", "--rounds", "1"])
    assert "--rounds must be at least 2; got 1" in capsys.readouterr().err
