"""Pretexts in the package: which one is found, and that it is what training would give."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

import pretexts as command
from dcl.app import pretexts, run
from dcl.app.clusters import Clusters
from dcl.app.pretexts import PRETEXTS, save, stored
from dcl.cluster.neighbors import agreement, mine
from dcl.config import unflat, with_epochs
from dcl.data import load
from dcl.methods import scan, simclr
from dcl.recipes import choose, recipe
from dcl.train import extract

SEEDS = {"digits": 5, "mnist": 3}


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.mark.parametrize("seed", range(5))
def test_those_of_the_digits_are_found_and_know_neighbours(digits, seed):
    config = replace(recipe("simclr", "digits"), seed=seed)  # today's: else they must be made anew
    found = stored(digits.images, config)
    assert found.config == config and not found.training
    assert agreement(mine(extract(found.embed, digits.images), 20), digits.labels) > 0.93


def test_the_files_tell_how_they_were_made():
    names = {f"simclr-{data}-seed{k}" for data, n in SEEDS.items() for k in range(n)}
    assert {path.stem for path in PRETEXTS.iterdir()} == names
    for path in PRETEXTS.iterdir():
        with safe_open(path, "pt") as file:
            about = file.metadata()
        assert about["format"] == pretexts.FORMAT and json.loads(about["versions"])["torch"]
        data, seed = path.stem.split("-")[1], json.loads(about["config"])["seed"]
        assert about["command"] == f"python book/pretexts.py {data} --seeds {SEEDS[data]}"
        plan = recipe("simclr", choose("simclr", data, "quick"))  # today's
        assert path.stem.endswith(f"-seed{seed}")
        assert unflat(simclr.Config, json.loads(about["config"])) == replace(plan, seed=seed)


def test_only_the_same_images_and_settings_find_one_which_equals_the_training(
    digits, tmp_path, monkeypatch
):
    monkeypatch.setattr(pretexts, "PRETEXTS", tmp_path)
    few, plan = digits.subset(200), replace(recipe("simclr", "smoke"), seed=3)
    assert stored(few.images, plan) is None
    trained = simclr.fit(few.images, plan)
    save(trained, few.images, tmp_path / "x.safetensors", command="none")
    found = stored(few.images, plan)
    same = found.state_dict()
    assert all(torch.equal(v, same[k]) for k, v in trained.state_dict().items())
    assert all(p.requires_grad for p in found.parameters())
    for images, config in (
        (few.images, replace(plan, seed=4)),
        (few.images, replace(plan, temperature=0.4)),
        (few.images, recipe("dec", "smoke").pretext),
        (digits.subset(200, seed=1).images, plan),
    ):
        assert stored(images, config) is None

    # a fit that is given it: the same clusters, and a network that loads without it
    config = with_epochs(
        replace(recipe("scan", "smoke"), seed=3, pretext=recipe("simclr", "smoke")), 1
    )
    monkeypatch.setattr(simclr, "fit", lambda *_, **__: pytest.fail("it was trained again"))
    clusters, assignment = run.fit("scan", few, config, tmp_path / "run", encoder=found)
    assert clusters.encoder == "" and not (tmp_path / "run" / "pretext").exists()
    again = Clusters.load(tmp_path / "run").assign(few.images)
    assert torch.equal(again.clusters, assignment.clusters)
    monkeypatch.undo()
    assert torch.equal(
        extract(scan.fit(few.images, config).predict, few.images), assignment.clusters
    )


def test_the_command_makes_what_is_missing_and_leaves_the_rest(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(pretexts, "PRETEXTS", tmp_path)
    monkeypatch.setattr(command, "PRETEXTS", tmp_path)
    monkeypatch.setattr(command, "recipe", lambda *_: recipe("simclr", "smoke"))
    assert command.main(["digits", "--seeds", "1"]) == 0
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    assert command.main(["digits", "--seeds", "2"]) == 0
    assert path.stat().st_mtime_ns == before and len([*tmp_path.iterdir()]) == 2
    for seed in range(2):
        assert stored(digits.images, replace(recipe("simclr", "smoke"), seed=seed))
