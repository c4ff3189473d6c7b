"""`dcl export`: folders of links or copies, whose names clash with nothing."""

import csv
import json
import os

import pytest
from PIL import Image
from test_places import there  # noqa: F401

from dcl.app import export as module
from dcl.app.cli import IMPOSSIBLE, OK, main
from dcl.app.export import export

FILES = {
    "IMG_1.jpg": 0,
    "phone/IMG_1.jpg": 0,  # the same name in the same cluster
    "phone/img_1.png": 0,  # the same but for capitals and ending
    "phone__IMG_1.jpg": 0,  # the name that the second would get
    "scans/IMG_1.jpg": 1,
    "x" * 240 + ".jpg": 1,
    "caf\udce9.jpg": 12,  # not valid UTF-8
    'a "b", c\n.jpg': 12,
}


@pytest.fixture
def given(tmp_path):
    """Images of all kinds of names, and their clusters as `dcl predict` writes them."""
    photos = tmp_path / "photos"
    for k, name in enumerate(FILES):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (k, 0, 0)).save(photos / name, "png")
    rows = [("file", "cluster", "confidence", "distance")]
    rows += [(f.replace("\udce9", "\\udce9"), k, 0.5, 0.25) for f, k in FILES.items()]
    with open(tmp_path / "new.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return photos, tmp_path / "new.csv", tmp_path / "sorted"


def links(to):
    return {p.relative_to(to).as_posix(): os.readlink(p) for p in to.rglob("*") if p.is_symlink()}


def test_every_image_has_a_link_of_its_own(given):
    photos, table, to = given
    done = export(table, to, str(photos), also=["fiftyone"])
    made = links(to)
    assert (done.images, done.clusters, done.made) == (8, 3, 8) and len(made) == 8
    assert {*made.values()} == {str(photos / name) for name in FILES}
    for place, target in made.items():
        assert place[:2] == f"{FILES[target.removeprefix(f'{photos}/')]:02d}"
    stems = [place.rpartition(".")[0].casefold() for place in made]
    assert len({*stems}) == 8 and max(len(os.fsencode(p)) for p in made) < 220
    assert "01/IMG_1.jpg" in made, "alone in its cluster it keeps its name"
    assert made["00/phone__IMG_1.jpg"] == str(photos / "phone/IMG_1.jpg")
    rows = [*csv.DictReader((to / "export.csv").open(newline=""))]
    assert [r["exported"] for r in rows if r["file"] == "scans/IMG_1.jpg"] == ["01/IMG_1.jpg"]
    labels = json.loads((to / "fiftyone.json").read_text())["labels"]
    assert labels["01/IMG_1"] == {
        "label": "1",
        "confidence": 0.5,
        "attributes": {"file": "scans/IMG_1.jpg", "distance": 0.25},
    }
    assert len(labels) == 8


def test_it_goes_on_and_overwrites_nothing(given, monkeypatch):
    photos, table, to = given
    put, calls = module._put, []

    def dies(source, target, copies):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(target)
        put(source, target, copies)

    monkeypatch.setattr(module, "_put", dies)
    with pytest.raises(KeyboardInterrupt):
        export(table, to, str(photos), copies=True)
    monkeypatch.setattr(module, "_put", put)
    kept = {path: path.stat().st_ino for path in calls}
    assert export(table, to, str(photos), copies=True).made == 5
    assert {path: path.stat().st_ino for path in calls} == kept, "made once"
    assert not links(to) and not list(to.rglob(".*"))
    assert export(table, to, str(photos), copies=True).made == 0
    calls[0].write_text("mine")
    with pytest.raises(ValueError, match="to must have no other file"):
        export(table, to, str(photos), copies=True)
    assert calls[0].read_text() == "mine"

    other = to.with_name("other")
    (other / "01").mkdir(parents=True)
    (other / "01" / "IMG_1.jpg").write_text("mine")
    with pytest.raises(ValueError, match="to must have no other file"):
        export(table, other, str(photos))
    assert not links(other) and not (other / "export.csv").exists()
    (other / "export.csv").write_text("my,own\n1,2\n")
    with pytest.raises(ValueError, match="export.csv must have the columns file, cluster"):
        export(table, other, str(photos))


def test_names_of_clusters_and_other_clusters(given, tmp_path):
    photos, table, to = given
    (tmp_path / "clusters.csv").write_text('cluster,name\n0,"cats/dogs "\n1,\n')
    export(table, to, str(photos), cluster_names=tmp_path / "clusters.csv")
    assert {place.partition("/")[0] for place in links(to)} == {"00 cats_dogs", "01", "12"}
    with pytest.raises(ValueError, match="export of the same clusters; .* in '00 cats_dogs', now"):
        export(table, to, str(photos))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda photos, to: {"data": ""}, "data must say where the images of"),
        (lambda photos, to: {"data": str(photos / "no")}, "data must be an existing folder"),
        (lambda photos, to: {"to": photos}, "to must be another folder than the images'"),
        (lambda photos, to: {"to": photos / "sorted"}, "to must lie outside the images' folder"),
        (lambda photos, to: (photos / "IMG_1.jpg").unlink(), "lacks 1, such as 'IMG_1.jpg'"),
        (lambda photos, to: {"also": ["parquet"]}, "pyarrow must be installed"),
    ],
)
def test_what_cannot_be_exported_is_said_first(given, change, said, monkeypatch):
    photos, table, to = given
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    asked = {"to": to, "data": str(photos)} | (change(photos, to) or {})
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        export(table, asked.pop("to"), **asked)
    assert not links(to) and not to.exists() and not links(photos)


def test_a_run_whose_images_were_moved(there, capfd):  # noqa: F811
    """Checked by content; links that lead nowhere are made again."""
    assert main(["export", "h", "--to", "sorted"]) == OK
    assert "12 images in " in capfd.readouterr().out
    (there / "a b").rename(there / "c")
    assert main(["export", "h", "--to", "sorted"]) == IMPOSSIBLE
    assert "if they were moved, say where to" in capfd.readouterr().err
    assert main(["export", "h", "--to", "sorted", "--data", "c"]) == OK
    assert "12 new links" in capfd.readouterr().out
    assert {*links(there / "sorted").values()} == {str(p) for p in (there / "c").iterdir()}
    Image.new("RGB", (16, 16)).save(there / "c" / "03.png")
    assert main(["export", "h", "--to", "again"]) == IMPOSSIBLE
    assert "images that changed: 1 (03.png)" in capfd.readouterr().err
