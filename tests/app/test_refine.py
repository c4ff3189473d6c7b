"""`dcl refine`: a run, or a CSV file, becomes a run with honest confidences; bad input is named."""

import json

import numpy as np
import pytest
import torch

from dcl.app import run
from dcl.app.assignments import assigned, read_csv
from dcl.app.cli import IMPOSSIBLE, OK, WARNING, main
from dcl.app.clusters import Clusters
from dcl.app.estimator import DeepClusterer
from dcl.config import with_rows
from dcl.data import load
from dcl.measure.calibration import calibration_error
from dcl.nets.convnets import encoder
from dcl.nets.labelled import Labelled
from photos import fit, photos_in

SMOKE = ("--recipe", "smoke", "--epochs", "1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photos_in(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def base(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "base"
    assert fit(photos, out, "--size", "16") in (OK, WARNING)
    return out


def rows(path, *columns):
    return {row[0]: row[1:] for row in read_csv(path, *columns)}


def test_a_run_becomes_a_refined_one(base, tmp_path, photos, capfd):
    out = tmp_path / "refined"
    asked = ["refine", str(base), "--out", str(out), *SMOKE, "--labels", "folders"]
    assert main(asked) in (OK, WARNING)
    mine, theirs = (
        rows(p, "file", "cluster") for p in (out / "before.csv", base / "assignments.csv")
    )
    assert mine == theirs
    page = (out / "report.html").read_text()
    known = [f.split("/")[0] for f in mine]
    y = np.unique(known, return_inverse=True)[1]
    c, p = zip(*rows(out / "before.csv", "file", "cluster", "confidence").values(), strict=True)
    ece = calibration_error(y, np.array([*map(int, c)]), np.array([*map(float, p)]))
    assert "Before and after" in page and f"<td>ECE</td><td>{ece:.3f}</td>" in page
    assert "<td>ACC</td>" in page and "labels of " in page

    found = Clusters.load(out)  # its network is named, like that of any run
    assert found.method == "ruc" and found.encoder == "" and found.n_clusters == 5
    width = json.loads((base / "config.json").read_text())["config"]["config.pretext.width"]
    assert found.config.pretext.width == width
    before = (out / "assignments.csv").read_bytes()
    assert main(["report", str(out)]) in (OK, WARNING)
    assert (out / "assignments.csv").read_bytes() == before
    assert "Before and after" in (out / "report.html").read_text()
    capfd.readouterr()
    assert main(asked) in (OK, WARNING)  # again: it goes on where it was, at the end
    assert "all epochs were done before" in capfd.readouterr().err
    assert main(["resume", str(out)]) == IMPOSSIBLE
    assert "goes on with the same dcl refine" in capfd.readouterr().err
    assert main(["refine", str(base), "--out", str(base), *SMOKE]) == IMPOSSIBLE
    assert "out must be another folder than the run's" in capfd.readouterr().err


def test_an_assignments_file_alone_will_do(base, photos, tmp_path, capfd):
    table, out = tmp_path / "theirs.csv", tmp_path / "refined"
    said = rows(base / "assignments.csv", "file", "cluster")
    table.write_text("file,cluster\n" + "".join(f"{f},{c}\n" for f, (c,) in said.items()))
    asked = ["refine", str(table), "--out", str(out), *SMOKE]
    assert main(asked) == IMPOSSIBLE
    assert f"data must say where the images of {table} are" in capfd.readouterr().err
    asked += ["--data", str(photos), "--size", "16", "--clusters", "5"]
    assert main(asked) in (OK, WARNING)
    page = (out / "report.html").read_text()
    assert "<td>mean confidence</td><td>1.000</td>" in page and "<td>ECE</td>" not in page
    assert (out / "pretext").is_dir() and len(rows(out / "assignments.csv", "file")) == 120
    assert main(["predict", str(out), str(photos), "--out", str(tmp_path / "p.csv")]) == OK
    table.write_text("file,cluster\n" + "".join(f"{f},0\n" for f in said))
    assert main(asked) == IMPOSSIBLE
    assert "another clustering was refined" in capfd.readouterr().err


FILES = ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,0\nb.png,1\n", "got 2: 1 are missing, such as 'c.png'"),
        ("a.png,0\nb.png,1\nc.png,1\nd.png,0\n", "got 4: 1 are not of data, such as 'd.png'"),
        ("x.png,0\ny.png,1\nz.png,1\n", "3 are missing, such as 'a.png', 3 are not of data"),
        ("a.png,0\nb.png,1\nc.png,1\na.png,0\n", "one row per image; 'a.png' has several"),
        ("a.png,0\nb.png,2\nc.png,1\n", "whole number, 0 to 1; got '2' for 'b.png'"),
        ("a.png,0\nb.png,-1\nc.png,1\n", "whole number, 0 to 1; got '-1' for 'b.png'"),
        ("a.png,0\nb.png,cat\nc.png,1\n", "whole number, 0 to 1; got 'cat' for 'b.png'"),
    ],
)
def test_bad_rows_are_named(text, message, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("file,cluster\n" + text)
    with pytest.raises(ValueError, match=message):
        assigned(path, FILES, 2)


def test_rows_are_put_in_the_order_of_the_images(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("cluster,file,confidence\n2,c.png,.5\n0,a.png,1\n1,b.png,.25\n")
    labels, sure = assigned(path, FILES)
    assert labels.tolist() == [0, 1, 2] and sure.tolist() == [1, 0.25, 0.5]
    for wrong in ("high", "1.5", "-0.1", "nan"):
        path.write_text(f"cluster,file,confidence\n2,c.png,.5\n0,a.png,{wrong}\n1,b.png,.25\n")
        said = f"confidence must be a number in 0..1; got '{wrong}' for 'a.png'"
        with pytest.raises(ValueError, match=said):
            assigned(path, FILES)
    path.write_text("file,label\na.png,1\n")
    with pytest.raises(ValueError, match="must have the columns file, cluster"):
        assigned(path, FILES)


def test_what_cannot_be_refined_is_said_in_a_line(base, tmp_path, capfd):
    for asked, message in (
        (["nowhere"], "must hold a finished run"),
        (["nowhere.csv", "--data", "digits"], "there must be a CSV file at nowhere.csv"),
        ([str(base), "--clusters", "7"], "clusters must be those of the run, 5; got 7"),
        ([str(base), "--data", "digits"], "data must be the images of the run"),
        ([str(base), "--labels", str(tmp_path / "l.csv")], "there must be a CSV file"),
        ([str(base), "--recipe", "fast"], "recipe must be one of smoke"),
    ):
        assert main(["refine", *asked, "--out", str(tmp_path / "o")]) == IMPOSSIBLE
        err = capfd.readouterr().err
        assert message in err and "Traceback" not in err
        assert not (tmp_path / "o" / "config.json").exists()


def test_labels_of_any_estimator_from_python():
    data = load("digits").subset(120)
    labels = torch.arange(120) % 4
    base = Labelled(encoder("small_cnn", data.images, width=8), labels)
    made = DeepClusterer("ruc", 4, recipe="smoke", epochs=1, encoder=base)
    with pytest.warns(UserWarning, match="to fit 120 images"):
        made.fit(data)
    assert made.labels_.shape == (120,) and made.clusters_.method == "ruc"
    with pytest.raises(ValueError, match=r"labels must be \(100,\), one per image; got \(120,\)"):
        config = with_rows(made.clusters_.config, 100)
        run.fit("ruc", data.subset(100), config, encoder=base)
