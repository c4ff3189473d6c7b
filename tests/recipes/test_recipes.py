"""Which recipe a data set gets: for the command line, the estimator and the chapters, one rule."""

import importlib
import pkgutil
import re
from itertools import product
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch

import dcl.recipes
from dcl.app import cli_fit, estimator
from dcl.app.cli import main
from dcl.recipes import choose, recipe, recipes
from sabotage import CHAPTERS, tags

METHODS = [found.name for found in pkgutil.iter_modules(dcl.recipes.__path__)]
NAMES = {"smoke", "digits", "shapes", "people", "photos", "frozen", "mnist", "mnist_10k",
         "cifar10", "paper", "photographs"}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_recipes_under_the_names_that_all_use(method):
    found = recipes(method)
    assert {"smoke", "digits", "cifar10", "paper"} <= found.keys() <= NAMES
    own = importlib.import_module(f"dcl.methods.{method}").Config
    assert {type(config) for config in found.values()} == {own}
    assert found["paper"] == own() or method == "autoencoder"  # of MNIST, whose scale it knows
    with pytest.raises(ValueError, match=r"recipe must be one of .*digits.*; got 'fast'"):
        recipe(method, "fast")


FOLDER = "folder:photos"
RULE = [  # what is known, and the recipe on a CPU and on a GPU, of a method that has it
    # the command line: the set's own, or that of the most similar one
    ({"data": "digits"}, "digits", "digits"),
    ({"data": "shapes"}, "shapes", "shapes"),
    ({"data": "people:test"}, "people", "people"),
    ({"data": "mnist:train"}, "mnist", "mnist"),
    ({"data": "fashion-mnist"}, "mnist", "mnist"),
    ({"data": "cifar10:train+test"}, "photos", "cifar10"),
    ({"data": FOLDER}, "photos", "cifar10"),
    ({"data": "x.npy"}, "vectors", "vectors"),
    ({"data": "photographs"}, "photographs", "photographs"),
    ({"data": FOLDER, "encoder": True}, "frozen", "frozen"),
    ({"data": "mnist", "encoder": True}, "frozen", "frozen"),
    ({"data": "digits", "encoder": True}, "digits", "digits"),
    # the estimator: a tensor has no name
    ({}, "photos", "cifar10"),
    ({"vectors": True}, "vectors", "vectors"),
    # the chapters: a profile, and whether the images that were read are gray
    ({"data": FOLDER, "profile": "smoke", "gray": False}, "smoke", "smoke"),
    ({"data": "cifar10", "profile": "paper", "gray": False}, "paper", "paper"),
    ({"data": "digits", "profile": "quick", "gray": True}, "digits", "digits"),
    ({"data": "shapes", "profile": "quick", "gray": False}, "shapes", "shapes"),
    ({"data": "mnist", "profile": "quick", "gray": True}, "mnist_10k", "mnist_10k"),
    ({"data": "fashion-mnist", "profile": "quick", "gray": True}, "digits", "digits"),
    ({"data": FOLDER, "profile": "quick", "gray": False}, "photos", "photos"),
    ({"data": FOLDER, "profile": "quick", "gray": True}, "digits", "digits"),
    ({"data": "digits", "profile": "gpu", "gray": True}, "mnist", "mnist"),
    ({"data": "mnist", "profile": "gpu", "gray": True}, "mnist", "mnist"),
    ({"data": FOLDER, "profile": "gpu", "gray": True}, "mnist", "mnist"),
    ({"data": "cifar10", "profile": "gpu", "gray": False}, "cifar10", "cifar10"),
]
LACKING = {"frozen": "cifar10", "mnist_10k": "digits", "shapes": "digits", "photos": "digits",
           "people": "digits", "mnist": "digits", "photographs": "vectors"}  # fmt: skip
"""What a method without such a recipe takes; for vectors frozen, or else digits."""


@pytest.mark.parametrize("known, cpu, cuda", RULE, ids=str)
def test_the_rule(known, cpu, cuda, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((4, 3), np.float32))
    for method, device in product(METHODS, ("cpu", "cuda")):
        wanted = {"cpu": cpu, "cuda": cuda}[device]
        while wanted not in recipes(method):
            frozen = "frozen" if "frozen" in recipes(method) else "digits"
            wanted = frozen if wanted == "vectors" else LACKING[wanted]
        assert choose(method, device=device, **known) == wanted, (method, device)


class Enough(Exception):
    pass


@pytest.mark.parametrize("device, photos", [("cpu", "photos"), ("cuda", "cifar10")])
def test_command_line_and_estimator_ask_the_rule(device, photos, monkeypatch, tmp_path):
    def stop(*args, **_):
        raise Enough(args[2])

    for module in (cli_fit, estimator):
        monkeypatch.setattr(module, "pick_device", lambda asked: SimpleNamespace(type=device))
    monkeypatch.setattr(cli_fit, "_settings", stop)
    monkeypatch.setattr(estimator.run, "fit", stop)
    for data, more, wanted in (
        ("mnist", (), "mnist"),
        (str(tmp_path), (), photos),
        (str(tmp_path), ("--encoder", "resnet50"), "frozen"),
        (str(tmp_path), ("--recipe", "digits"), "digits"),
    ):
        with pytest.raises(Enough) as chosen:
            main(["fit", "scan", "--data", data, "--out", str(tmp_path / "run"), *more])
        assert str(chosen.value) == wanted
    images = torch.zeros(1000, 3, 8, 8, dtype=torch.uint8)
    for more, wanted in (({}, photos), ({"encoder": "resnet50"}, "frozen")):
        with pytest.raises(Enough) as chosen:
            estimator.DeepClusterer("scan", **more).fit(images)
        assert chosen.value.args == (recipe("scan", wanted),)


CELLS = {
    path.stem: cell.source
    for path in sorted(CHAPTERS.glob("*.ipynb"))
    for cell in nbformat.read(path, as_version=4).cells
    if "config" in tags(cell) and "recipe(" in cell.source
    if path.stem != "photographs"  # of vectors, for which smoke and paper have no recipe
}


@pytest.mark.parametrize("chapter", CELLS)
def test_the_chapters_ask_the_rule(chapter):
    source = CELLS[chapter]
    assert re.findall(r"recipe\(\S+, (?!which\)|choose\()|which = (?!choose\()", source) == []
    asked = re.findall(r"choose\(.+", source)
    assert asked and all("profile" in words and "gray=" in words for words in asked)
    assert len(CELLS) >= 7
