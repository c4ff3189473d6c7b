"""A recorded run: refused or finished, killed and gone on with, done once, and then published."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

import record
from dcl.app import cli, run
from dcl.app.assignments import read_csv
from dcl.app.clusters import WEIGHTS, Clusters, sha256, shipped
from dcl.app.monitors import read_log
from dcl.app.source import Source
from dcl.config import with_epochs
from dcl.data import load
from dcl.methods import autoencoder, method, scan, simclr
from dcl.notebook import results
from dcl.recipes import recipe
from dcl.train import predict
from notebooks import tags

ROOT = Path(__file__).resolve().parents[2]
ASKED = ["scan", "-p", "profile", "smoke", "-p", "epochs", "2", "-p", "seed", "0"]
NEEDED = ("load(name)", "simclr.fit(", "model = fit(", "baselines(data", "results.record(")
NAME = "scan-smoke-seed0-epochs2"


def short(folder):
    """SCAN's chapter with the cells only that train, score and record."""
    notebook = nbformat.read(record.CHAPTERS / "scan.ipynb", as_version=4)
    kept = {"parameters", "check", "imports", "config"}
    notebook.cells = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code"
        and (kept & set(tags(cell)) or any(word in cell.source for word in NEEDED))
    ]
    assert len(notebook.cells) == len(kept) + len(NEEDED)
    nbformat.write(notebook, folder / "scan.ipynb")


def start(chapters, folder):
    code = "import sys, record; from pathlib import Path; record.CHAPTERS = Path(sys.argv[1])\n"
    code += "sys.exit(record.main(sys.argv[2:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, chapters, *ASKED, "--runs", folder],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'book'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run that was killed in the middle of a stage, and what it said when it was finished."""
    chapters, runs = tmp_path_factory.mktemp("chapters"), tmp_path_factory.mktemp("runs")
    short(chapters)
    log = runs / NAME / "log.jsonl"
    first = start(chapters, runs)
    while not any(row["stage"] == "scan" for row in read_log(log)):
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.01)
    # with its kernel, which would train on for a second
    for process in [first, *psutil.Process(first.pid).children(recursive=True)]:
        process.send_signal(signal.SIGKILL)
    first.wait()
    killed = json.loads((runs / NAME / "manifest.json").read_text())
    assert killed["state"] == "started" and not (runs / NAME / "notebook.ipynb").exists()
    assert (runs / NAME / "unfinished.ipynb").exists()
    second = start(chapters, runs)
    said = second.communicate()[0]
    assert second.returncode == record.DONE, said
    return chapters, runs / NAME, said


def test_a_killed_run_ends_as_an_uninterrupted_one(ran):
    _, folder, said = ran
    assert any(f"resumes after {n} epochs" in said for n in (3, 4, 5)), said
    rows = read_log(folder / "log.jsonl")
    assert [(r["stage"], r["epoch"]) for r in rows] == [
        (stage, epoch) for stage in ("pretext", "scan", "selflabel") for epoch in (0, 1)
    ]
    data = load("digits")
    config = with_epochs(replace(recipe("scan", "smoke"), n_clusters=10, seed=0), 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the run had
    clusters = predict(scan.fit(data.images, config), data.images)
    torch.set_num_threads(threads)
    (path,) = (folder / "results").glob("*.json")
    result = json.loads(path.read_text())
    assert result["clusters"] == clusters.tolist()
    # the seconds of the process that was killed count
    assert result["seconds"] >= sum(row["seconds"] for row in rows) - 0.1


def test_the_manifest_tells_what_was_run(ran):
    _, folder, _ = ran
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["state"] == "finished" and manifest["chapter"] == "scan"
    assert manifest["command"] == (
        "python book/record.py scan -p profile smoke -p seed 0 -p epochs 2"
    )
    assert manifest["parameters"] == {
        "profile": "smoke", "dataset": "", "seed": 0, "device": "auto", "epochs": 2,
        "run_dir": str(folder), "results_dir": str(folder / "results"),
    }  # fmt: skip
    assert [a["ended"] for a in manifest["attempts"]] == ["killed", "finished"]
    assert all(a["revision"] and a["started"] for a in manifest["attempts"])
    cells = nbformat.read(folder / "notebook.ipynb", as_version=4).cells
    assert cells[-1].outputs[0].text == "scan-digits-smoke-seed0.json\n"
    assert not (folder / "unfinished.ipynb").exists()


def test_its_folder_is_one_that_dcl_knows(ran, tmp_path, capfd):
    _, folder, _ = ran
    (result,) = record.recorded(folder).values()
    assert run.settings(folder).source == Source("digits", "all", limit=1797)
    assert cli.main(["predict", str(folder), "digits", "--out", str(tmp_path / "p.csv")]) == cli.OK
    assert (tmp_path / "p.csv").read_bytes() == (folder / "assignments.csv").read_bytes()
    found = [int(cluster) for (cluster,) in read_csv(folder / "assignments.csv", "cluster")]
    assert found == result["clusters"]
    before = (folder / "log.jsonl").read_bytes()
    for command in ("report", "resume"):  # nothing is left to train
        (folder / "report.html").unlink()
        assert cli.main([command, str(folder)]) in (cli.OK, cli.WARNING)
        assert (folder / "report.html").exists()
    assert (folder / "log.jsonl").read_bytes() == before


def test_a_finished_run_is_not_run_again_unless_told(ran, monkeypatch, capsys):
    chapters, folder, _ = ran
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.suffix != ".lock"}
    monkeypatch.setattr(record, "CHAPTERS", chapters)
    monkeypatch.setattr(record, "run", lambda *_: pytest.fail("it was run again"))
    asked = [*ASKED, "--runs", str(folder.parent)]
    assert record.main(asked) == record.DONE
    assert "is finished; --again runs it again: scan ACC " in capsys.readouterr().out
    after = {p: p.stat().st_mtime_ns for p in before}
    assert {p.name for p in before if before[p] != after[p]} <= {".pid", "pretext", folder.name}


def test_a_run_goes_into_the_book_with_its_network(ran, tmp_path, monkeypatch):
    chapters, folder, _ = ran
    monkeypatch.setattr(record, "CHAPTERS", chapters)
    recorded, weights = tmp_path / "results", tmp_path / "weights"
    made = record.into_the_book(folder, recorded, weights)
    stem = "scan-digits-smoke-seed0"
    assert made == [recorded / f"{stem}.json", weights / f"{stem}.safetensors"]
    result = json.loads(made[0].read_text())
    assert result["command"].startswith("python book/record.py") and result["attempts"] == 2
    assert result["weights"] == {
        "bytes": made[1].stat().st_size, "sha256": sha256(made[1])
    }  # fmt: skip
    found = Clusters.load(made[1], checksum=result["weights"]["sha256"])
    assert found.assign(load("digits").images).clusters.tolist() == result["clusters"]

    kept = folder / "results" / made[0].name  # another seed's stays where it is
    text = kept.read_text()
    kept.write_text(json.dumps(json.loads(text) | {"seed": 1}))
    assert record.into_the_book(folder, tmp_path / "other", tmp_path / "none")[1:] == []
    kept.write_text(text)
    monkeypatch.setattr(record, "SMALL", 1000)  # and so does a large one
    assert record.into_the_book(folder, recorded, tmp_path / "none") == made[:1]
    large = sha256(folder / "model.safetensors")
    assert json.loads(made[0].read_text())["weights"]["sha256"] == large
    with pytest.raises(ValueError, match=f"path must have the sha256 0000; .* has {large}"):
        Clusters.load(folder / "model.safetensors", checksum="0000")
    result = json.loads(text)
    kept.write_text(json.dumps(result | {"clusters": result["clusters"][::-1]}))
    with pytest.raises(ValueError, match="must give the recorded clusters"):
        record.into_the_book(folder, recorded, weights)
    kept.write_text(text)


@pytest.mark.parametrize(
    "words, complaint",
    [
        ("skan", "chapter must be one that records, adc, .*; got 'skan'"),
        ("compare", "chapter must be one that records"),
        ("scan -p epoch 3", "epoch is not a parameter of scan; its parameters are profile, "),
        ("scan -p profile fast", "profile must be one of smoke, quick, gpu, paper; got 'fast'"),
        ("scan -p seed one", "seed must be a whole number; got 'one'"),
        ("scan -p seed -1", "seed must be 0 or more; got -1"),
        ("scan -p dataset imagenet", "dataset must be empty .*; got 'imagenet'"),
        ("scan -p dataset mnist:half", "dataset must be empty .*; got 'mnist:half'"),
        ("scan -p dataset folder:nowhere", "dataset must name an existing folder"),
        ("scan -p run_dir x", r"run_dir is set by this command \(--runs"),
        ("scan -p results_dir x", "results_dir is set by this command"),
    ],
)
def test_refused_before_any_work(words, complaint, tmp_path, capsys):
    assert record.main([*words.split(), "--runs", str(tmp_path / "runs")]) == record.REFUSED
    assert re.search(complaint, capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


def test_a_folder_belongs_to_one_command_and_a_failure_is_kept(tmp_path, monkeypatch, capsys):
    cell = new_code_cell('profile = "quick"\nseed = 0', metadata={"tags": ["parameters"]})
    cells = [cell, new_code_cell("print(profile)"), new_code_cell("1 / 0")]
    language = {"language_info": {"name": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=language), tmp_path / "scan.ipynb")
    real = record.defaults("scan")
    monkeypatch.setattr(record, "CHAPTERS", tmp_path)
    monkeypatch.setattr(record, "defaults", lambda chapter: dict(real))
    folder = tmp_path / "runs" / "scan-quick-seed0"
    asked = ["scan", "--runs", str(folder.parent)]
    with record.only_one(folder):
        assert record.main(asked) == record.REFUSED
        assert "is in use by another command" in capsys.readouterr().err
    assert record.main(asked) == record.FAILED
    assert "scan failed: ZeroDivisionError: division by zero" in capsys.readouterr().err
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["state"] == "failed"
    assert manifest["attempts"][0]["ended"] == "PapermillExecutionError: division by zero"
    assert (folder / "unfinished.ipynb").exists() and not (folder / "notebook.ipynb").exists()
    with pytest.raises(ValueError, match="must hold a finished run with a result"):
        record.into_the_book(folder, tmp_path, tmp_path)

    def done(chapter, values, place):
        assert [p.name for p in place.iterdir()] == [".record.lock"]  # begun anew

    monkeypatch.setattr(record, "run", done)
    (tmp_path / "scratch").mkdir()
    (folder / "pretext").symlink_to(tmp_path / "scratch")
    assert record.main([*asked, "--again"]) == record.DONE and (tmp_path / "scratch").exists()


def test_the_command_is_what_to_type():
    values = record.parameters("scan", [("dataset", "mnist:train+test"), ("seed", "3")])
    typed = record.command("scan", values)
    assert typed == (
        "python book/record.py scan -p profile quick -p dataset mnist:train+test -p seed 3"
    )
    values = record.defaults("scan") | {"run_dir": "runs/x", "results_dir": "y"}
    assert record.command("scan", values).endswith("scan -p profile quick -p seed 0")


def test_networks_that_travel_give_the_recorded_clusters(capsys):
    names = shipped()
    for name in names:
        (about,) = results.load(stem=name)
        path = WEIGHTS / f"{name}.safetensors"
        assert path.stat().st_size == about["weights"]["bytes"] <= record.SMALL
        assert sha256(path) == about["weights"]["sha256"]
        if about["data"] not in ("digits", "shapes", "photographs"):  # the images may not be here
            Clusters.load(name)
            continue
        clusters = Clusters.load(name).assign(load(about["data"]).images).clusters
        # another processor may round another way: an image on the border, no more
        same = (clusters == clusters.new_tensor(about["clusters"])).float().mean()
        assert same > 0.995, name
    if names:
        assert cli.main(["predict", names[0], "digits"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("file,cluster,confidence") and len(lines) == 1798
        assert cli.main(["list"]) == 0 and names[0] in capsys.readouterr().out


def test_a_chapter_of_two_methods_leaves_two_networks(tmp_path):
    """As DEC's chapter: one pretext, DEC on top, IDEC in a folder of its own."""
    data = load("digits").subset(150)
    plans = {name: with_epochs(recipe(name, "smoke"), 1) for name in ("dec", "idec")}
    coder = autoencoder.fit(data.images, plans["dec"].pretext, run_dir=tmp_path / "pretext")
    trained = {}
    (tmp_path / "results").mkdir()
    for name, place in (("dec", tmp_path), ("idec", tmp_path / "idec")):
        model = method(name).fit(data.images, plans[name], encoder=coder, run_dir=place)
        trained[place] = predict(model, data.images)
        row = {"method": name, "data": "digits", "split": "all", "training": {"images": 150}}
        row |= {"metrics": {"ACC": 0.5}, "seconds": 2.0}
        (tmp_path / "results" / f"{name}-x.json").write_text(json.dumps(row))
    values = {"dataset": "", "device": "cpu"}
    record.complete(tmp_path, {"chapter": "dec", "parameters": values})
    for place, clusters in trained.items():
        assert torch.equal(run.clusters(place, device="cpu").assign(data.images)[0], clusters)
        assert (place / "report.html").exists()
    assert record._line(tmp_path) == "dec ACC 0.500 in 2 s; idec ACC 0.500 in 2 s"


def test_a_run_that_began_with_a_stored_pretext_is_completed_with_it(tmp_path, monkeypatch):
    data, plan = load("digits").subset(150), with_epochs(recipe("nnm", "smoke"), 1)
    first = simclr.fit(data.images, replace(plan.pretext, seed=plan.seed))
    model = method("nnm").fit(data.images, plan, encoder=first, run_dir=tmp_path)
    monkeypatch.setattr(record, "stored", lambda _, c: first if c == first.config else None)
    monkeypatch.setattr(simclr, "fit", lambda *_, **__: pytest.fail("it was trained again"))
    row = {"method": "nnm", "data": "digits", "split": "all", "training": {"images": 150}}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text(json.dumps(row))
    record.complete(tmp_path, {"chapter": "nnm", "parameters": {"dataset": "", "device": "cpu"}})
    found = run.clusters(tmp_path, device="cpu").assign(data.images).clusters
    assert torch.equal(found, predict(model, data.images)) and not (tmp_path / "pretext").exists()
