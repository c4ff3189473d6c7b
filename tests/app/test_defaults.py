"""`dcl fit` without a method: what it takes and says; the command that it prints does the same."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from dcl.app import defaults
from dcl.app.cli import IMPOSSIBLE, OK, WARNING, main
from dcl.app.run import settings
from dcl.data import Data
from dcl.measure.n_clusters import Choice
from dcl.recipes import recipe
from photos import photos_in

DONE = (OK, WARNING)
DINO, RESNET = defaults.ENCODERS


@pytest.fixture
def machine(monkeypatch):
    """A machine on which these weights lie, and these can be downloaded."""

    def has(kept=(), downloads=(), known=(DINO, RESNET)):
        def get(name):
            if name not in downloads:
                raise FileNotFoundError(name)

        monkeypatch.delenv(defaults.VARIABLE, raising=False)
        monkeypatch.setattr(defaults, "_known", known.__contains__)
        monkeypatch.setattr(defaults, "kept", [*kept].__contains__)
        monkeypatch.setattr(defaults, "pretrained", get)
        monkeypatch.setattr(defaults, "_answers", lambda name: name in (*downloads, RESNET))

    return has


@pytest.mark.parametrize(
    ("there", "name", "why"),
    [
        ({"kept": [RESNET, DINO]}, DINO, "its weights are on this machine"),
        ({"kept": [RESNET], "downloads": [DINO]}, RESNET, "labels of ImageNet; its weights are on"),
        ({"downloads": [RESNET]}, RESNET, "its weights were downloaded"),
        (
            {"kept": [DINO], "known": [RESNET]},
            "",
            "the weights of resnet50 are not on this machine",
        ),
        ({}, "", "could not be downloaded. Expect less"),
    ],
)
def test_an_encoder_is_taken_if_one_can_be_had(there, name, why, machine, tmp_path):
    machine(**there)
    said = []
    flags = ["--encoder", name] if name else []
    assert defaults.method(str(tmp_path), "", 0, tmp_path / "out", said.append) == ("scan", flags)
    assert why in said[-1] and ("from scratch" in said[-1]) == (not name)


def test_what_is_named_is_taken(machine, tmp_path, monkeypatch):
    machine(kept=[DINO])
    said = []
    assert defaults.method(str(tmp_path), "resnet18", 0, tmp_path, said.append) == ("scan", [])
    assert defaults.method("digits", "", 0, tmp_path, said.append) == ("scan", [])
    np.save(tmp_path / "x.npy", np.zeros((9, 2), np.float32))
    assert defaults.method(str(tmp_path / "x.npy"), "", 0, tmp_path, said.append) == ("scan", [])
    assert [line.partition(": ")[2] for line in said] == [
        "scan, on the features of resnet18", "scan, from scratch", "scan, on vectors",
    ]  # fmt: skip
    monkeypatch.setenv(defaults.VARIABLE, "resnet99")
    with pytest.raises(ValueError, match="encoder must be one of"):
        defaults.method(str(tmp_path), "", 0, tmp_path, said.append)


@pytest.mark.parametrize("encoder", ["", "tiny:build"])
def test_the_command_that_is_printed_does_the_same(encoder, machine, tmp_path, monkeypatch, capfd):
    machine()
    (tmp_path / "tiny.py").write_text(
        "import torch\n\ndef build():\n"
        "    return torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())\n"
    )
    (tmp_path / "photos").mkdir()
    photos_in(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(defaults.VARIABLE, encoder)
    asked = [
        "fit",
        "--data",
        "photos",
        "--out",
        "one",
        "--size",
        "16",
        "--limit",
        "40",
        "--epochs",
        "1",
    ]
    asked += [] if encoder else ["--recipe", "smoke"]
    assert main(asked) in DONE
    lines = capfd.readouterr().err.splitlines()
    (command,) = [line.partition("same: ")[2] for line in lines if "same: " in line]
    words = shlex.split(command)
    assert words[:3] == ["dcl", "fit", "scan"] and (encoder in words) == bool(encoder)
    assert any(f"dcl: {words[words.index('--clusters') + 1]} clusters" in line for line in lines)
    words[words.index("one")] = "two"
    assert main(words[1:]) in DONE
    one, two = (tmp_path / out / "assignments.csv" for out in ("one", "two"))
    assert one.read_bytes() == two.read_bytes() and settings("one").encoder == encoder

    said = []  # what was begun is gone on with, whatever can be had by then
    monkeypatch.setenv(defaults.VARIABLE, "resnet50")
    more = ["--encoder", encoder] * bool(encoder) + words[words.index("--clusters") :][:2]
    assert defaults.method("photos", "", 0, Path("one"), said.append) == ("scan", more)
    assert defaults.method("photos", "tiny:build", 3, Path("one"), said.append) == ("scan", [])
    assert said[:1] == ["no method was named: scan, as the run in one was begun"]


@pytest.mark.parametrize(
    ("sure", "n", "k"),
    [("clear", 90, 7), ("weak", 90, 7), ("no structure", 90, 9), ("no structure", 500, 10)],
)
def test_where_nothing_is_to_count_the_recipe_says_how_many(sure, n, k, monkeypatch):
    found = Choice(7, [7, 8], [], sure, "So it is.", [])
    monkeypatch.setattr(defaults, "for_fit", lambda *asked: found)
    data, said = Data(torch.zeros(n, 2), None, None, name="x", split="all"), []
    assert defaults.clusters(data, "", recipe("scan", "frozen"), Path(), "cpu", said.append) == k
    assert said[0].startswith(f"{k} clusters") and "So it is." in said[0]


def test_a_mistake_is_found_before_any_work(machine, tmp_path, monkeypatch, capfd):
    machine(downloads=[RESNET])
    monkeypatch.setattr(defaults, "pretrained_one", lambda tell: pytest.fail("looked for weights"))
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--data", str(tmp_path)])
    assert stop.value.code == IMPOSSIBLE
    for args, said in (
        (["--data", "nowhere", "--out", str(tmp_path / "r")], "data must be an existing folder"),
        (["--data", str(tmp_path), "--out", "/dev/null"], "out must be a folder"),
    ):
        assert main(["fit", *args]) == IMPOSSIBLE
        assert said in capfd.readouterr().err
