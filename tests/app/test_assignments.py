import csv
import os

import pytest
import torch

from dcl.app import assignments
from dcl.app.clusters import Assignment

NAMES = ['a,"b"\n.png', "<img src=x onerror=alert(1)>.jpg", "=1+1.png", "ひらがな.png", "../up.png"]


def assignment(n=5):
    p = torch.eye(5)[:n] * 0.75 + 0.05
    return Assignment(p.argmax(1), p.amax(1), torch.linspace(0, 0.4, n), p, p)


def test_any_name_survives_the_table(tmp_path):
    path = tmp_path / "assignments.csv"
    names = [*NAMES[:4], os.fsdecode(b"caf\xe9.png")]  # not UTF-8, as old archives leave it
    path.write_bytes(assignments.table(names, assignment()))
    assert b"caf\xe9.png" in path.read_bytes()
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == names
    rows = assignments.read_csv(path, "file", "cluster", "confidence", "distance")
    assert rows[1] == (names[1], "1", "0.8000", "0.1000")
    assert [r[0] for r in rows] == names


def test_labels_are_met_by_name_only(tmp_path):
    (tmp_path / "assignments.csv").write_bytes(assignments.table(NAMES, assignment()))
    labels = tmp_path / "labels.csv"
    rows = [("file", "label"), ("elsewhere.png", "x"), *zip(reversed(NAMES), "eedca")]
    with open(labels, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    found = assignments.evaluate(tmp_path, labels)
    # five clusters of one image, four classes, of which one has two: 4 of 5 can match
    assert found["compared"] == 5 and found["ACC"] == 0.8 and found["purity"] == 1.0
    assert not [p for p in tmp_path.parent.iterdir() if p.name == "up.png"]


def test_labels_by_folder(tmp_path):
    names = ["x/cat/1.png", "x/cat/2.png", "dog/1.png", "dog/2.png", "dog/3.png"]
    p = torch.eye(2)[torch.tensor([0, 0, 1, 1, 0])]
    a = Assignment(p.argmax(1), p.amax(1), torch.zeros(5), p, p)
    (tmp_path / "assignments.csv").write_bytes(assignments.table(names, a))
    assert assignments.evaluate(tmp_path, "folders")["ACC"] == 0.8


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there must be a CSV file"):
        assignments.read_csv(tmp_path / "none.csv", "file")
    (tmp_path / "a.csv").write_text("name,class\n1,2\n")
    with pytest.raises(ValueError, match=r"must have the columns file, label; got .*'name'"):
        assignments.read_csv(tmp_path / "a.csv", "file", "label")


def test_labels_that_say_nothing_or_two_things(tmp_path):
    (tmp_path / "assignments.csv").write_bytes(assignments.table(NAMES, assignment()))
    with pytest.raises(ValueError, match="labels must name files"):  # nothing lies in a folder
        assignments.evaluate(flat(tmp_path / "flat"), "folders")
    labels = tmp_path / "labels.csv"
    labels.write_text("file,label\n=1+1.png,x\n../up.png\nひらがな.png,\n=1+1.png,x\n")
    assert assignments.evaluate(tmp_path, labels)["compared"] == 1
    labels.write_text("file,label\n=1+1.png,x\n=1+1.png,y\n")
    with pytest.raises(ValueError, match=r"each file one label; '=1\+1\.png' has several"):
        assignments.evaluate(tmp_path, labels)


def flat(out):
    out.mkdir()
    (out / "assignments.csv").write_bytes(assignments.table([*"abcde"], assignment()))
    return out
