"""The command with any encoder: a function of one's own, several at once, and the list of them."""

import importlib.util
import sys

import pytest
import torch

from dcl.app import cli_encoders, run
from dcl.app.cli import IMPOSSIBLE, OK, WARNING, main
from dcl.app.clusters import Clusters
from dcl.app.source import Source, side
from photos import photos_in

OWN = "colours_of_mine:build"
CODE = """
from torch import nn

def build():
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A current folder with photographs and a module; the module is known only there."""
    (tmp_path / "photos").mkdir()
    photos_in(tmp_path / "photos")
    (tmp_path / "colours_of_mine.py").write_text(CODE)
    monkeypatch.setenv("DCL_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("colours_of_mine", None)


def test_a_run_finds_the_function_again_or_says_that_it_cannot(place, monkeypatch, capfd):
    asked = ["--size", "32", "--clusters", "3", "--epochs", "1", "--recipe", "frozen"]
    both = f"resnet18@32:{place / 'r18.pth'},{OWN}"
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), place / "r18.pth")
    fit = ["fit", "scan", "--data", "photos", "--out", "run", *asked, "--encoder", both]
    assert main(fit) in (OK, WARNING)
    assert main(["report", "run"]) in (OK, WARNING)
    assert main(["predict", "run", "photos", "--out", "new.csv"]) == OK
    found = run.clusters("run")
    assert found.encoder == f"resnet18@32,{OWN}" and found.model.encoder.widths == (512, 12)
    with pytest.raises(ValueError, match=f"must be given: .* was made with {OWN}"):
        Clusters.load("run")  # which runs no code
    images = Source("photos", size=32).load(tell=None).images
    again = Clusters.load("run", encoder=found.model.encoder)
    assert torch.equal(again.assign(images).clusters, found.assign(images).clusters)
    del sys.modules["colours_of_mine"]
    sys.path.remove(str(place))
    monkeypatch.chdir("/")
    assert main(["predict", str(place / "run"), str(place / "photos")]) == IMPOSSIBLE
    said = capfd.readouterr().err
    assert f"encoder {OWN} must name a function" in said and "PYTHONPATH" in said


def test_photographs_are_read_at_the_size_that_the_encoder_wants(place):
    assert side("photos", 0, "resnet18") == 224 == side("photos", 0, OWN)
    assert (
        side("photos", 0, "resnet18@64,resnet18@96") == 96 and side("photos", 48, "resnet18") == 48
    )
    assert side("photos", 0) == 32 and side("digits", 0, "resnet18") == 0


def test_dcl_encoders_lists_names_with_widths_sizes_and_megabytes(capsys, monkeypatch):
    assert main(["encoders", "resnet18"]) == OK
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("resnet18 "))
    assert line.split() == ["resnet18", "512", "224", "45"]
    if importlib.util.find_spec("timm"):
        assert main(["encoders", "lite0"]) == OK
        out = capsys.readouterr().out
        assert ["timm/tf_efficientnet_lite0.in1k", "1280", "224", "14"] in map(
            str.split, out.splitlines()
        )
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr(cli_encoders, "MOST", 2)
    assert main(["encoders", "resnet"]) == OK
    out = capsys.readouterr().out
    assert "resnet34" in out and "512" not in out and "more than 2: a longer word" in out
    assert "timm is not installed" in out and "deep-clustering-book[photos]" in out
    assert main(["encoders", "nothing"]) == OK
    assert "no name contains 'nothing'" in capsys.readouterr().out
