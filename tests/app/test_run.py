import csv
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from dcl.app import run
from dcl.app.assignments import evaluate
from dcl.app.cli import IMPOSSIBLE, INTERRUPTED, OK, WARNING, main
from dcl.app.clusters import Clusters
from dcl.app.source import Source
from dcl.config import with_epochs
from dcl.recipes import recipe
from photos import fit, photos_in


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photos_in(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def done(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "photos"
    code = fit(photos, out, "--size", "16", "--epochs", "2")
    assert code in (OK, WARNING)
    return out


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def weights(out):
    return load_file(out / "model.safetensors")


def test_a_run_leaves_what_it_promises(done, photos):
    names = {p.name for p in done.iterdir() if not p.name.startswith(".")}
    assert names == {
        "config.json", "images.csv", "log.jsonl", "model.safetensors", "assignments.csv",
        "pretext", "scan.pt", "scan.previous.pt", "selflabel.pt", "selflabel.previous.pt",
        "skipped.csv", "health.json", "report.html",
        "duplicates.csv", "outliers.csv",
    }  # fmt: skip
    lines = [json.loads(line) for line in (done / "log.jsonl").read_text().splitlines()]
    stages = [(r["stage"], r["epoch"]) for r in lines]
    assert stages == [(s, e) for s in ("pretext", "scan", "selflabel") for e in (0, 1)]
    assert all(r["seconds"] > 0 and isinstance(r["loss"], float) for r in lines)
    assert [r["file"] for r in rows(done / "skipped.csv")] == ["class 3/broken.jpg"]
    found = rows(done / "assignments.csv")
    assert list(found[0]) == ["file", "cluster", "confidence", "distance"]
    assert len(found) == 120 and len({r["file"] for r in found}) == 120
    assert all((photos / r["file"]).is_file() for r in found)
    assert all(0 <= int(r["cluster"]) < 5 and 0.2 <= float(r["confidence"]) <= 1 for r in found)
    report = (done / "report.html").read_text()
    assert "120 images in 5 clusters" in report
    health = json.loads((done / "health.json").read_text())
    sizes = [sum(int(r["cluster"]) == k for r in found) for k in range(5)]
    assert health["sizes"] == sizes


def test_labels_in_the_folders_change_nothing(done, photos, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for k, row in enumerate(sorted(r["file"] for r in rows(done / "assignments.csv"))):
        (flat / f"{k:03}.png").write_bytes((photos / row).read_bytes())
    config = run.settings(done).config
    a, b = (Source(str(f), size=16).load() for f in (photos, flat))
    assert a.labels is not None and b.labels is None and torch.equal(a.images, b.images)
    _, found = run.fit("scan", b, config)
    wanted = [int(r["cluster"]) for r in rows(done / "assignments.csv")]
    assert found.clusters.tolist() == wanted


def test_predict_gives_the_same_clusters_to_the_same_images(done, photos, tmp_path, capfd):
    assert main(["predict", str(done), str(photos), "--out", str(tmp_path / "p.csv")]) == OK
    assert (tmp_path / "p.csv").read_bytes() == (done / "assignments.csv").read_bytes()
    assert "skipped class 3/broken.jpg" in capfd.readouterr().err
    assert main(["predict", str(done), str(photos / "class 1")]) == OK
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "file,cluster,confidence,distance"
    known = {r["file"]: r["cluster"] for r in rows(done / "assignments.csv")}
    for line in lines[1:]:
        name, cluster, *_ = line.split(",")
        assert known[f"class 1/{name}"] == cluster


def test_report_and_resume_of_a_finished_run_change_no_cluster(done):
    before = (done / "assignments.csv").read_bytes(), weights(done)
    (done / "report.html").unlink()
    assert main(["report", str(done)]) in (OK, WARNING)
    assert (done / "report.html").exists()
    assert main(["resume", str(done)]) in (OK, WARNING)
    assert (done / "assignments.csv").read_bytes() == before[0]
    assert all(torch.equal(v, before[1][k]) for k, v in weights(done).items())


def test_a_report_of_images_that_have_changed_is_refused(photos, tmp_path, capfd):
    own = tmp_path / "own"
    shutil.copytree(photos, own)
    assert fit(own, tmp_path / "x", "--size", "16", "--epochs", "1") in (OK, WARNING)
    before = (tmp_path / "x" / "assignments.csv").read_bytes()
    next(own.glob("class 4/*.png")).unlink()
    assert main(["report", str(tmp_path / "x")]) == IMPOSSIBLE
    assert f"{own} has changed" in capfd.readouterr().err
    assert (tmp_path / "x" / "assignments.csv").read_bytes() == before
    own.rename(tmp_path / "moved")
    assert main(["resume", str(tmp_path / "x")]) == IMPOSSIBLE
    assert f"data must be an existing folder (seen from {os.getcwd()!r})" in (
        capfd.readouterr().err
    )


def test_evaluate(done, tmp_path, capfd):
    assert main(["evaluate", str(done), "--labels", "folders"]) == OK
    by_folder = capfd.readouterr().out
    truth = [(r["file"], r["file"].split("/")[0]) for r in rows(done / "assignments.csv")]
    labels = tmp_path / "labels.csv"
    labels.write_text("label,file\n" + "".join(f"{c},{f}\n" for f, c in reversed(truth)))
    assert main(["evaluate", str(done), "--labels", str(labels)]) == OK
    assert capfd.readouterr().out == by_folder and "compared 120" in by_folder
    # oracle: clusters that are the classes score 1
    copy = tmp_path / "run"
    copy.mkdir()
    text = "".join(f"{f},{int(c[-1])},1,0\n" for f, c in truth)
    (copy / "assignments.csv").write_text("file,cluster,confidence,distance\n" + text)
    assert evaluate(copy, labels)["ACC"] == 1.0
    labels.write_text("file,label\n../../elsewhere,1\n")
    assert main(["evaluate", str(done), "--labels", str(labels)]) == IMPOSSIBLE
    assert "labels must name files of the run" in capfd.readouterr().err
    labels.write_text("name,class\n")
    assert main(["evaluate", str(done), "--labels", str(labels)]) == IMPOSSIBLE
    assert "must have the columns file, label" in capfd.readouterr().err


def test_an_interrupted_run_goes_on_and_ends_the_same(done, photos, tmp_path, monkeypatch, capfd):
    out, seen = tmp_path / "run", []

    class Stop(run.Log):
        def __call__(self, stage, epoch, objective, losses):
            super().__call__(stage, epoch, objective, losses)
            seen.append((stage, epoch))
            if seen[-1] == ("scan", 0):
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "Log", Stop)
        assert fit(photos, out, "--size", "16", "--epochs", "2") == INTERRUPTED
    assert f"dcl resume {out}" in capfd.readouterr().err
    assert not (out / "model.safetensors").exists()
    assert main(["predict", str(out), str(photos)]) == IMPOSSIBLE
    assert f"dcl resume {out}" in capfd.readouterr().err
    assert main(["resume", str(out)]) in (OK, WARNING)
    assert all(torch.equal(v, weights(done)[k]) for k, v in weights(out).items())
    for name in ("assignments.csv", "health.json"):
        assert (out / name).read_bytes() == (done / name).read_bytes(), name
    drop = [{**json.loads(x), "seconds": 0} for x in (out / "log.jsonl").read_text().splitlines()]
    keep = [{**json.loads(x), "seconds": 0} for x in (done / "log.jsonl").read_text().splitlines()]
    assert drop == keep


def test_another_run_is_not_written_over(done, photos, capfd):
    before = (done / "config.json").read_bytes()
    assert fit(photos, done, "--size", "16", "--epochs", "3") == IMPOSSIBLE
    assert "epochs: there 2, now 3" in capfd.readouterr().err
    assert fit(photos, done, "--size", "12", "--epochs", "2") == IMPOSSIBLE
    assert "data.checksum: there" in capfd.readouterr().err
    assert (done / "config.json").read_bytes() == before


def test_settings_reach_the_method_and_small_sets_get_small_batches(photos, tmp_path):
    more = ("--size", "16", "--limit", "40", "--seed", "7", "--config.n-neighbors", "3")
    assert fit(photos, tmp_path / "x", *more, "--tensorboard") in (OK, WARNING)
    config = run.settings(tmp_path / "x").config
    assert (config.seed, config.n_neighbors, config.n_clusters) == (7, 3, 5)
    assert config.scan.batch_size == config.pretext.train.batch_size == 40
    assert len(rows(tmp_path / "x" / "assignments.csv")) == 40
    assert list((tmp_path / "x" / "tensorboard").glob("events*"))


def test_a_network_from_python(photos, tmp_path):
    """A pretrained encoder, frozen: heads on features, once; and the folder works."""
    data = Source(str(photos), size=16).load()
    torch.manual_seed(0)
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 256, 8), torch.nn.Tanh())
    calls = []
    own[1].register_forward_hook(lambda *_: calls.append(1))
    config = replace(recipe("scan", "frozen"), n_clusters=4, n_neighbors=5)
    config = with_epochs(config, lambda n: min(n, 2))
    config = replace(config, scan=replace(config.scan, batch_size=40))
    clusters, found = run.fit("scan", data, config, tmp_path / "x", encoder=own)
    assert len(calls) <= 6  # the check, mining and the end; not once for every batch and epoch
    assert len(list((tmp_path / "x").glob("features-*.safetensors"))) == 1
    calls.clear()
    assert torch.equal(run.fit("scan", data, config, tmp_path / "x", encoder=own)[1][0], found[0])
    assert len(calls) <= 3  # the check and the end: what was extracted is read again
    again = Clusters.load(tmp_path / "x" / "model.safetensors", encoder=own)
    assert torch.equal(again.assign(data.images).clusters, found.clusters)
    with pytest.raises(ValueError, match="this run was started from Python"):
        run.resume(tmp_path / "x")
