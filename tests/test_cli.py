import pytest

from dcl import publish
from dcl.cli import IMPOSSIBLE, OK, main
from photos import fit, photos_in


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photos_in(tmp_path_factory.mktemp("photos"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "sca"], "method must be one of deepcluster, lsdc, scan, swav; got 'sca'"),
        (["fly"], "command must be one of fit, list"),
        (["predict", "nowhere", "digits"], "must hold a finished run"),
        (["resume", "nowhere"], "must be a run folder"),
        (["evaluate", "nowhere", "--labels", "x"], "there must be a CSV file"),
        (["choose-k", "nothing"], "name must be one of digits"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(args, message, capfd):
    assert main(args) == IMPOSSIBLE
    err = capfd.readouterr().err
    assert message in err and "Traceback" not in err and err.count("\n") == 1


def test_bad_settings_are_refused_before_work(photos, tmp_path, capfd):
    for more, message in (
        (["--profile", "fast"], "profile must be one of smoke"),
        (["--clusters", "1000"], "as many images as clusters, 1000; got 120"),
        (["--size", "16", "--encoder", "resnet0"], "encoder must be one of"),
        (["--size", "16", "--device", "cuda:77"], "device must be auto, cpu or a GPU"),
        (["--size", "16", "--config.n-neighbors", "500"], "n_neighbors must be 1 to 119"),
        (["--size", "16", "--split", "test"], "split must be one of all; got 'test'"),
    ):
        assert fit(photos, tmp_path / "x", *more) == IMPOSSIBLE
        assert message in capfd.readouterr().err
        assert not (tmp_path / "x" / "log.jsonl").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert fit(empty, tmp_path / "x") == IMPOSSIBLE
    assert "found none below" in capfd.readouterr().err
    for wrong in (["--data", "x"], ["--data", "x", "--out", "y", "--config.threshold", "3"]):
        with pytest.raises(SystemExit) as stop:  # no --out; a value that Config refuses
            main(["fit", "scan", *wrong])
        assert stop.value.code == IMPOSSIBLE
    assert "threshold must be at least 0 and below 1; got 3.0" in capfd.readouterr().err


def test_help_teaches(capfd):
    assert main(["--help"]) == OK
    text = capfd.readouterr().out
    for command in ("list", "fit", "predict", "report", "evaluate", "resume", "choose-k"):
        assert f"dcl {command}" in text
    assert main(["list"]) == OK
    listed = capfd.readouterr().out
    for name in publish.methods():
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
