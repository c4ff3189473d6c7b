"""A chapter's parameters are checked before anything runs."""

import pytest
import torch

from dcl.notebook import parameters
from dcl.notebook.parameters import check_parameters, run_folder, run_name

GOOD = {"profile": "quick", "dataset": "", "seed": 0, "device": "cpu", "epochs": 0,
        "run_dir": "", "results_dir": ""}  # fmt: skip


def test_good_parameters_among_what_a_kernel_defines():
    kernel = {"In": ["", "x = 1"], "Out": {}, "_": "", "x": 1, "__name__": "__main__"}
    assert check_parameters({**kernel, **GOOD}) == "cpu"
    assert check_parameters({**GOOD, "n_clusters": 3}, also=("n_clusters",)) == "cpu"
    for good in ("folder:photos", "mnist:train+test", "cifar10:test", "digits:all"):
        assert check_parameters({**GOOD, "dataset": good}) == "cpu"
    assert check_parameters({**GOOD, "profile": "quick-shapes"}, profiles=["quick-shapes"]) == "cpu"


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"profile": "fast"}, ValueError, "profile must be one of smoke, quick.*'fast'"),
        ({"dataset": "imagenet"}, ValueError, "dataset must be.*folder:PATH; got 'imagenet'"),
        *(
            ({"dataset": bad}, ValueError, "dataset must be empty")
            for bad in ("folder:", "mnist:", "mnist:half", "digits:train", ":train")
        ),
        ({"device": "tpu"}, ValueError, "device must be one of auto, cpu, cuda; got 'tpu'"),
        ({"seed": -1}, ValueError, "seed must be 0 or more; got -1"),
        ({"epochs": -2}, ValueError, "epochs must be 0 or more; got -2"),
        ({"seed": "1e3"}, TypeError, "seed must be a whole number; got '1e3'"),
        ({"seed": True}, TypeError, "seed must be a whole number"),
        ({"epochs": 1.5}, TypeError, "epochs must be a whole number; got 1.5"),
        ({"profile": 1}, TypeError, "profile must be a text; got 1"),
    ],
)
def test_bad_parameters_are_named(change, error, words):
    with pytest.raises(error, match=words):
        check_parameters({**GOOD, **change})


@pytest.mark.parametrize("line", ["epoch = 3", "lr = 0.1", "note = None", "names = ['a']"])
def test_a_parameter_that_papermill_injected_and_nobody_knows_is_refused(line):
    history = ["", "profile = 'quick'", f"# Parameters\nseed = 1\n{line}\n"]
    name = line.split()[0]
    with pytest.raises(ValueError, match=f"{name} is not a parameter of this chapter; .*epochs"):
        check_parameters({**GOOD, "In": history})
    assert check_parameters({**GOOD, "In": history, name: 3}, also=[name]) == "cpu"
    with pytest.raises(ValueError, match=f"the parameter {name} is missing"):
        check_parameters({**GOOD, "In": history}, also=[name])


def test_device_auto_and_absent_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check_parameters({**GOOD, "device": "auto"}) == "cpu"
    with pytest.raises(ValueError, match="finds no GPU"):
        check_parameters({**GOOD, "device": "cuda"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert check_parameters({**GOOD, "device": "auto"}) == "cuda"
    assert check_parameters({**GOOD, "device": "cpu"}) == "cpu"


@pytest.mark.parametrize(
    "dataset, epochs, name",
    [
        ("", 0, "scan-gpu-seed3"),
        ("mnist", 0, "scan-mnist-gpu-seed3"),
        ("mnist:train+test", 2, "scan-mnist-train+test-gpu-seed3-epochs2"),
        ("folder:/data/my photos/", 0, "scan-my-photos-gpu-seed3"),
        ("folder:C:\\data\\jpeg", 0, "scan-jpeg-gpu-seed3"),
    ],
)
def test_a_run_is_called_after_its_parameters(dataset, epochs, name):
    values = {"profile": "gpu", "dataset": dataset, "epochs": epochs, "seed": 3}
    assert run_name("scan", values) == name
    assert run_folder("scan", values) == f"runs/{name}"
    assert run_folder("scan", values | {"profile": "paper"}).startswith("runs/")
    for short in ("smoke", "quick"):  # nothing is left behind
        assert run_folder("scan", values | {"profile": short}) == ""


def test_in_colab_a_long_run_is_kept_in_the_drive(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parameters, "DRIVE", tmp_path)
    values = {"profile": "gpu", "dataset": "", "epochs": 0, "seed": 3}
    place = tmp_path / "deep-clustering-book" / "runs" / "scan-gpu-seed3"
    assert run_folder("scan", values) == str(place)
    assert capsys.readouterr().out == f"checkpoints are kept in Drive: {place.parent}\n"
    assert run_folder("scan", values | {"profile": "quick"}) == ""
