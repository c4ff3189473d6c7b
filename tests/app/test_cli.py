import os
import subprocess
import sys

import pytest

from dcl import methods
from dcl.app.cli import IMPOSSIBLE, OK, WARNING, main
from photos import fit, photos_in


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photos_in(tmp_path_factory.mktemp("photos"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "sca"], f"must be one of {', '.join(methods.methods())}; got 'sca'"),
        (["fly"], "command must be one of fit, list"),
        (["predict", "nowhere", "digits"], "must hold a finished run"),
        (["resume", "nowhere"], "must be a run folder"),
        (["evaluate", "nowhere", "--labels", "x"], "there must be a CSV file"),
        (["choose-k", "nothing"], "data must be an existing folder (seen from"),
        (["choose-k", "digits", "--most", "2"], "most must be at least 3"),
        (["choose-k", "digits", "--limit", "5"], "data must have at least 6 images; got 5"),
        (["choose-k", "digits", "--limit", "-3"], "limit must be at least 0; got -3"),
        (["evaluate", "nowhere", "--labels", "folders"], "there must be a CSV file"),
        (["predict", "nowhere", "digits", "--out", os.curdir], "out must be the path of a file"),
        (["predict", "nowhere", "digits", "--out", os.devnull], "out must be the path of a file"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(args, message, capfd):
    assert main(args) == IMPOSSIBLE
    err = capfd.readouterr().err
    assert message in err and "Traceback" not in err and err.count("\n") == 1


def test_bad_settings_are_refused_before_work(photos, tmp_path, capfd):
    for more, message in (
        (["--recipe", "fast"], "recipe must be one of smoke"),
        (["--clusters", "1000"], "as many images as clusters, 1000; got 120"),
        (["--size", "16", "--encoder", "resnet0"], "encoder must be one of"),
        (["--size", "16", "--device", "cuda:77"], "device must be auto, cpu or an available GPU"),
        (
            ["--size", "16", "--config.n-neighbors", "500"],
            "n-neighbors must be at most 119",
        ),
        (["--size", "16", "--split", "test"], "split must be all; got 'test'"),
    ):
        assert fit(photos, tmp_path / "x", *more) == IMPOSSIBLE
        assert message in capfd.readouterr().err
        assert not (tmp_path / "x" / "log.jsonl").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert fit(empty, tmp_path / "x") == IMPOSSIBLE
    assert "found none below it" in capfd.readouterr().err
    for wrong in (["--data", "x"], ["--data", "x", "--out", "y", "--config.threshold", "3"]):
        with pytest.raises(SystemExit) as stop:  # no --out; a value that Config refuses
            main(["fit", "scan", *wrong])
        assert stop.value.code == IMPOSSIBLE
    assert "threshold must be at least 0 and below 1; got 3.0" in capfd.readouterr().err


def test_a_place_that_cannot_be_written_is_refused_before_images_are_read(tmp_path, capfd):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("gone")
    for name in ("file", "file/deeper", "link", "link/deeper"):
        assert fit(tmp_path / "unread", tmp_path / name) == IMPOSSIBLE
        place = tmp_path / name.partition("/")[0]
        assert f"out must be a folder that can be written; '{place}'" in capfd.readouterr().err
    assert fit(tmp_path / "unread", tmp_path / "x", "--clusters", "1") == IMPOSSIBLE
    assert "clusters must be at least 2; got 1" in capfd.readouterr().err
    assert fit(tmp_path / "unread", tmp_path / "x", "--size", "7") == IMPOSSIBLE
    assert "size must be at least 8; got 7" in capfd.readouterr().err
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "x").exists()
    assert main(["evaluate", str(tmp_path), "--labels", str(tmp_path)]) == IMPOSSIBLE


def test_refused_settings_do_not_keep_the_folder(photos, tmp_path, capfd):
    out = tmp_path / "x"
    (out / "other").mkdir(parents=True)
    (out / "other" / "config.json").write_text("mine")
    (tmp_path / "scratch").mkdir()
    (out / "pretext").symlink_to(tmp_path / "scratch")  # checkpoints on another disk
    assert fit(photos, out, "--size", "16", "--config.n-neighbors", "500") == IMPOSSIBLE
    assert fit(photos, out, "--size", "16", "--epochs", "1") in (OK, WARNING)
    assert (out / "pretext").is_symlink() and list((tmp_path / "scratch").glob("*.pt"))
    assert (out / "other" / "config.json").read_text() == "mine"
    assert fit(photos, out, "--size", "16", "--config.n-neighbors", "30") == IMPOSSIBLE
    assert "n_neighbors: there 20, now 30" in capfd.readouterr().err


def test_a_reader_that_has_enough_is_no_error():
    end, start = os.pipe()
    os.close(end)
    done = subprocess.run(
        [sys.executable, "-m", "dcl", "--help"], stdout=start, stderr=subprocess.PIPE, timeout=100
    )
    os.close(start)
    assert (done.returncode, done.stderr) == (OK, b"")


def test_help_teaches(capfd):
    assert main(["--help"]) == OK
    text = capfd.readouterr().out
    for command in ("list", "fit", "predict", "export", "evaluate", "resume", "choose-k"):
        assert f"dcl {command}" in text
    assert main(["list"]) == OK
    listed = capfd.readouterr().out
    for name in methods.methods():
        assert name in listed
        with pytest.raises(SystemExit) as stop:
            main(["fit", name, "--help"])
        assert stop.value.code == 0
        text = capfd.readouterr().out
        assert "--config.n-clusters" in text and "A folder of images" in text
    assert main([]) == IMPOSSIBLE and main(["fit"]) == IMPOSSIBLE and main(["fit", "-h"]) == OK


def test_choose_k_speaks(photos, capfd):
    assert (
        main(["choose-k", str(photos), "--size", "16", "--most", "6", "--encoder", "pixels"]) == OK
    )
    text = capfd.readouterr().out
    assert text.splitlines()[0].split() == [
        "k", "score", "stability", "silhouette", "bend", "balance",
    ]  # fmt: skip
    assert [line.split()[0] for line in text.splitlines()[1:6]] == ["2", "3", "4", "5", "6"]
