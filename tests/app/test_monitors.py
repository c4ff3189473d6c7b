import json
import sys
from dataclasses import replace

import pytest

from dcl.app.monitors import Bar, Log, Reading, all_of, read_log, tensorboard
from dcl.config import epochs_of, with_epochs
from dcl.objective import Objective
from dcl.recipes import recipe


def test_a_log_that_is_no_log_is_refused(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []
    for text in ("not json\n", "[1]\n", "{}\n", '{"stage": "scan", "epoch": 0}\n'):
        path.write_text(text)
        with pytest.raises(ValueError, match="log.jsonl must be one JSON object per line"):
            Log(run_dir=tmp_path)


def test_log_keeps_and_prints(capsys):
    log = Log(every=2, also=lambda objective: {"ACC": 0.5})
    for epoch in range(4):
        log("scan", epoch, Objective(), {"loss": 1.25 + epoch, "steps": 3 * epoch, "empty": 0.0})
    assert capsys.readouterr().out.splitlines() == [  # what never changes is left out
        "scan  epoch   2  ACC 0.500  loss 2.250  steps 3",
        "scan  epoch   4  ACC 0.500  loss 4.250  steps 9",
    ]
    assert [row["epoch"] for row in log.history] == [0, 1, 2, 3]
    assert "ACC" not in log.history[0] and log.history[1]["ACC"] == 0.5
    Log(every=0, also=pytest.fail)("scan", 0, Objective(), {"loss": 1.0})
    assert capsys.readouterr().out == ""


def test_the_history_of_an_interrupted_run_goes_on(tmp_path, capsys):
    first = Log(run_dir=tmp_path)
    for epoch in range(2):
        first("scan", epoch, Objective(), {"loss": 1.0 + epoch})
    assert first.before == 0
    second = Log(also=lambda objective: {"ACC": 0.5}, run_dir=tmp_path)
    assert second.history == first.history == read_log(tmp_path / "log.jsonl")
    assert second.before == sum(row["seconds"] for row in first.history)
    second("scan", 1, Objective(), {"loss": 9.0})  # killed before its checkpoint: trained again
    second("selflabel", 2, Objective(), {"loss": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert second.history == lines and lines[-1]["ACC"] == 0.5
    assert [(r["stage"], r["epoch"], r["loss"]) for r in lines] == [
        ("scan", 0, 1.0), ("scan", 1, 9.0), ("selflabel", 2, 0.5),
    ]  # fmt: skip
    assert capsys.readouterr().out.splitlines()[-1] == "selflabel  epoch   3  ACC 0.500  loss 0.500"


def test_epochs_of_every_stage_are_counted():
    config = with_epochs(recipe("scan", "digits"), 3)
    assert epochs_of(config) == 9  # pretext, scan, self-labelling
    assert epochs_of(config, pretext=False) == 6
    assert epochs_of(replace(config, selflabel=replace(config.selflabel, epochs=0))) == 6


def test_several_monitors_are_called_in_turn():
    seen = []
    monitor = all_of(lambda *row: seen.append(row), None, lambda *row: seen.append("b"))
    monitor("train", 1, None, {"loss": 2.0})
    assert seen == [("train", 1, None, {"loss": 2.0}), "b"]


def test_the_bar_is_silent_where_nobody_looks(capfd, monkeypatch):
    bar = Bar(4)
    bar("train", 0, None, {"loss": 1.0})
    bar.close()
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = Bar(4)
    bar.skip(2)
    bar("train", 2, None, {"loss": 1.25})
    bar.close()
    assert "train" in (text := capfd.readouterr().err) and "3/4" in text and "loss=1.25" in text


def test_reading_shows_how_many_files_are_left(capfd, monkeypatch):
    Reading()(5, 5)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    told = Reading()
    for done in (64, 100):
        told(done, 100)
    assert "reading" in (text := capfd.readouterr().err) and "100/100" in text


def test_curves_for_tensorboard(tmp_path, monkeypatch):
    tensorboard(tmp_path)("train", 0, None, {"loss": 1.0})
    assert list(tmp_path.glob("events*"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="tensorboard must be installed"):
        tensorboard(tmp_path)
