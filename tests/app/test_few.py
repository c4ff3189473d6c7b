"""Few images: what a recipe says of a set's size is fitted to the set, what was typed is not."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dcl.app.cli import IMPOSSIBLE, OK, WARNING, main
from dcl.app.estimator import DeepClusterer
from dcl.config import check_rows, flat, with_rows
from dcl.recipes import recipe, recipes
from sabotage import METHODS

CLUSTERING = [m for m in METHODS if hasattr(recipe(m, "smoke"), "n_clusters")]


def pngs(folder, n, side=32):
    """n random colour pictures."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for k in range(n):
        pixels = random.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def fifteen(tmp_path_factory):
    return pngs(tmp_path_factory.mktemp("few") / "p15", 15)


@pytest.mark.parametrize("method", CLUSTERING)
@pytest.mark.parametrize("n", [15, 3])
def test_few_photographs_go_through(method, n, fifteen, tmp_path, capfd):
    data = str(fifteen if n == 15 else pngs(tmp_path / "few", n))
    out, clusters = str(tmp_path / "o"), str(min(n, 3))
    asked = ["--data", data, "--clusters", clusters, "--out", out, "--epochs", "1"]
    assert main(["fit", method, *asked]) in (OK, WARNING)
    assert f"dcl: to fit {n} images: " in capfd.readouterr().err
    assert main(["predict", out, data]) == OK
    assert len(capfd.readouterr().out.splitlines()) == n + 1
    assert main(["report", out]) in (OK, WARNING)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [2, 5, 19, 64])
def test_every_recipe_is_fitted(method, n):
    for config in recipes(method).values():
        check_rows(with_rows(config, n), n)
        assert with_rows(config, 10**9) == config


TYPED = [
    ("scan", "--config.n-neighbors", 20, 14),
    ("scan", "--config.pretext.train.batch-size", 16, 15),
    ("scan", "--config.scan.batch_size", 128, 15),
    ("deepcluster", "--config.n-pseudo", 30, 15),
    ("lsdc", "--config.k", 16, 15),
]


@pytest.mark.parametrize(("method", "flag", "value", "most"), TYPED)
def test_what_was_typed_is_refused_by_the_name_that_was_typed(
    method, flag, value, most, fifteen, tmp_path, capfd
):
    out = tmp_path / "o"
    asked = ["--data", str(fifteen), "--clusters", "3", "--out", str(out), "--recipe", "smoke"]
    assert main(["fit", method, *asked, flag, str(value)]) == IMPOSSIBLE
    wanted = f"dcl: {flag} must be at most {most} for 15 images; got {value}\n"
    assert capfd.readouterr().err == wanted and not out.exists()
    assert main(["fit", method, *asked, f"{flag}={most - 1}"]) in (OK, WARNING)
    key = "config." + flag.removeprefix("--config.").replace("-", "_")
    assert json.loads((out / "config.json").read_text())["config"][key] == most - 1


def test_too_few_are_a_sentence(tmp_path, capfd):
    three = str(pngs(tmp_path / "three", 3))
    assert main(["choose-k", three, "--encoder", "pixels"]) == IMPOSSIBLE
    assert capfd.readouterr().err == "dcl: data must have at least 6 images; got 3\n"
    for n, clusters in (3, "4"), (1, "2"):
        few = str(pngs(tmp_path / f"n{n}", n))
        asked = ["--data", few, "--clusters", clusters, "--out", str(tmp_path / "o")]
        assert main(["fit", "dac", *asked]) == IMPOSSIBLE
        assert f"as many images as clusters, {clusters}; got {n}\n" in capfd.readouterr().err


def test_fifteen_are_enough_to_choose_k(fifteen, capfd):
    assert main(["choose-k", str(fifteen)]) == OK
    assert capfd.readouterr().out


def test_the_estimator_says_what_it_fitted_and_refuses_what_no_recipe_has(fifteen):
    asked = {"n_clusters": 3, "recipe": "smoke", "epochs": 1}
    with pytest.warns(UserWarning, match=r"to fit 15 images: n_neighbors 14 \(not 20\)"):
        found = DeepClusterer("scan", **asked).fit(str(fifteen))
    assert flat(found.clusters_.config)["n_neighbors"] == 14
    own = replace(recipe("scan", "smoke"), n_neighbors=17)
    with pytest.raises(ValueError, match=r"config.n_neighbors must be at most 14 .*; got 17"):
        DeepClusterer("scan", 3, config=own).fit(str(fifteen))
