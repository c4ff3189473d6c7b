"""Where a run's data are, wherever one stands; and whether its output can be written, first."""

import os
import shlex

import numpy as np
import pytest
from PIL import Image

from dcl.app import run
from dcl.app.cli import IMPOSSIBLE, INTERRUPTED, OK, WARNING, main
from dcl.app.estimator import DeepClusterer
from dcl.app.source import Source
from dcl.methods import dac
from dcl.notebook.parameters import PARAMETERS, check_parameters

DONE = (OK, WARNING)


def pngs(folder, names, seed=0):
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    for name in names:
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / name)
    return folder


def fit(data, out):
    asked = ["--data", str(data), "--out", str(out), "--clusters", "2", "--recipe", "smoke"]
    return main(["fit", "dac", *asked, "--size", "16", "--epochs", "1"])


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A finished run of twelve pictures, all named as seen from their own folder."""
    pngs(tmp_path / "a b", [f"{k:02}.png" for k in range(12)])
    monkeypatch.chdir(tmp_path)
    assert fit("a b", "h") in DONE
    return tmp_path


# ---------------------------------------------------------------- where the data are


def test_a_run_is_found_from_any_folder(there, monkeypatch):
    (there / "elsewhere").mkdir()
    monkeypatch.chdir(there / "elsewhere")
    assert run.settings("../h").source.data == str(there / "a b")
    for command in "report", "resume":
        assert main([command, "../h"]) in DONE


def test_vectors_and_weights_are_found_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32))
    asked = ["--data", "x.npy", "--clusters", "2", "--recipe", "smoke", "--out", "v"]
    assert main(["fit", "dec", *asked]) in DONE
    monkeypatch.chdir("/")
    assert main(["report", str(tmp_path / "v")]) in DONE
    (tmp_path / "x.npy").rename(tmp_path / "y.npy")
    assert main(["report", str(tmp_path / "v"), "--data", str(tmp_path / "y.npy")]) in DONE
    assert main(["resume", str(tmp_path / "v")]) in DONE
    assert Source("digits").absolute() == Source("digits") and Source("").absolute() == Source("")


@pytest.mark.parametrize("command", ["report", "resume"])
def test_moved_data_are_named_checked_and_kept(command, there, monkeypatch, capfd):
    (there / "a b").rename(there / "c")
    monkeypatch.chdir("/")
    assert main([command, str(there / "h")]) == IMPOSSIBLE
    hint = f"dcl report {shlex.quote(str(there / 'h'))} --data PLACE"
    assert f"if they were moved, say where to: {hint}\n" in capfd.readouterr().err
    pngs(there / "other", [f"{k:02}.png" for k in range(12)], seed=1)
    before = (there / "h" / "config.json").read_bytes()
    assert main([command, str(there / "h"), "--data", str(there / "other")]) == IMPOSSIBLE
    assert "images that changed: 12 (00.png, 01.png, " in capfd.readouterr().err
    assert (there / "h" / "config.json").read_bytes() == before
    monkeypatch.chdir(there)
    assert main([command, "h", "--data", "c"]) in DONE
    assert main(["report", "h"]) in DONE


def came(a):
    pngs(a, ["new.png"], seed=2)


def went(a):
    for k in range(6):
        (a / f"{k:02}.png").unlink()


def changed(a):
    pngs(a, ["03.png"], seed=3)


def renamed(a):
    (a / "00.png").rename(a / "zz.png")


CHANGES = [
    (came, ["images that came: 1 (new.png)"]),
    (went, ["images that went: 6 (00.png, 01.png, 02.png, 03.png, 04.png and 1 others)"]),
    (changed, ["images that changed: 1 (03.png)"]),
    (renamed, ["images that came: 1 (zz.png)", "images that went: 1 (00.png)"]),
]


@pytest.mark.parametrize(("change", "lines"), CHANGES)
def test_what_changed_is_named(change, lines, there, capfd):
    change(there / "a b")
    capfd.readouterr()
    for again in fit("a b", "h"), main(["report", "h"]), main(["resume", "h"]):
        assert again == IMPOSSIBLE
    said = capfd.readouterr().err
    assert all(said.count(line) == 3 for line in lines)


def test_the_hint_of_an_interrupted_run_works_anywhere(there, monkeypatch, capfd):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dac, "fit", stop)
        assert fit("a b", "new run") == INTERRUPTED
    (line,) = [x for x in capfd.readouterr().err.splitlines() if "to continue" in x]
    monkeypatch.chdir("/")
    assert main(shlex.split(line.partition("to continue: dcl ")[2])) in DONE


# ---------------------------------------------------------------- where the output goes


@pytest.fixture
def refused(monkeypatch):
    """Folders that cannot be written, also for the superuser who runs the tests."""
    closed, access = [], os.access

    def answer(path, mode, **more):
        kept = os.path.realpath(path) in map(str, closed) and mode & os.W_OK
        return not kept and access(path, mode, **more)

    monkeypatch.setattr(os, "access", answer)
    monkeypatch.setattr(Source, "load", lambda *_, **__: 1 / 0)  # never reached
    return closed


def test_every_command_looks_at_its_place_first(there, refused, capfd):
    (there / "ro").mkdir()
    refused += [there / "ro", there / "h"]
    (there / "file").write_text("mine")
    for args, named in (
        (["predict", "h", "a b", "--out", "ro/new.csv"], "out must be a file in a folder"),
        (["predict", "h", "a b", "--out", "ro/deeper/new.csv"], "out must be a file in a folder"),
        (["predict", "h", "a b", "--out", "file/new.csv"], "out must be a file in a folder"),
        (["predict", "h", "a b", "--out", "ro"], "out must be the path of a file"),
        (["report", "h"], "run_dir must be a folder that can be written"),
        (["resume", "h"], "run_dir must be a folder that can be written"),
        (["fit", "dac", "--data", "a b", "--out", "ro/x"], "out must be a folder that can be"),
        (["fit", "dac", "--data", "a b", "--out", "file"], "out must be a folder that can be"),
    ):
        assert main(args) == IMPOSSIBLE
        assert f"dcl: {named}" in capfd.readouterr().err


def test_python_looks_at_its_place_first(there, refused):
    refused += [there / "ro"]
    (there / "ro").mkdir()
    for place in "ro", "ro/deeper":
        with pytest.raises(ValueError, match=r"run_dir must be a folder that can be .*ro' is not$"):
            DeepClusterer("dac", 2, run_dir=place).fit("a b")
    for name in "run_dir", "results_dir":
        chapter = {n: kind() for n, kind in PARAMETERS.items()} | {"profile": "smoke"}
        with pytest.raises(ValueError, match=f"{name} must be a folder that can be written"):
            check_parameters({**chapter, "device": "cpu", name: str(there / "ro")})


def test_a_run_that_cannot_be_written_still_predicts(there, monkeypatch):
    before = sorted((p.name, p.stat().st_mtime) for p in (there / "h").iterdir())
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, mode, **_: not mode & os.W_OK and access(p, mode))
    assert main(["predict", "h", "a b"]) == OK
    assert before == sorted((p.name, p.stat().st_mtime) for p in (there / "h").iterdir())


def test_a_run_of_an_older_version_has_no_list_of_images(there, capfd):
    (there / "h" / "images.csv").unlink()
    came(there / "a b")
    assert main(["report", "h"]) == IMPOSSIBLE
    assert capfd.readouterr().err.endswith("a b has changed\n")
