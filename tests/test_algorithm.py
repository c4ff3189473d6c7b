"""What every `fit` does before its algorithm: one check, one claim, one checksum."""

import json
from dataclasses import asdict, dataclass, replace
from importlib import import_module

import pytest
import torch
from torch import nn

from dcl import algorithm
from dcl.app import run
from dcl.config import flat, with_epochs
from dcl.data import Data, load
from dcl.methods import autoencoder, idec, scan
from dcl.nets import convnets
from dcl.recipes import recipe
from dcl.runtime import checkpoint
from dcl.views import View
from sabotage import METHODS


@pytest.fixture(scope="module")
def digits():
    return load("digits").subset(150)


@pytest.fixture
def counted(monkeypatch):
    """How often a run makes `Data` of its images, checks, claims and hashes."""
    seen = {"data": 0, "check": 0, "claim": 0, "hash": 0}

    def count(name, owner, attribute, function):
        def noted(*args, **kwargs):
            seen[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, noted)

    count("data", Data, "__post_init__", Data.__post_init__)
    count("check", algorithm, "check_fit", algorithm.check_fit)
    count("claim", checkpoint, "claim", checkpoint.claim)
    count("hash", Data.checksum, "func", Data.checksum.func)
    return seen


def test_a_run_of_three_stages_is_checked_claimed_and_hashed_once(digits, counted, tmp_path):
    scan.fit(digits.images, recipe("scan", "smoke"), run_dir=tmp_path)
    assert counted == {"data": 1, "check": 1, "claim": 1, "hash": 1}
    assert [p.parent for p in tmp_path.rglob("config.json")] == [tmp_path]
    assert (tmp_path / "pretext" / "pretext.pt").exists() and (tmp_path / "scan.pt").exists()
    scan.fit(digits.images, recipe("scan", "smoke"))
    assert counted == {"data": 2, "check": 2, "claim": 1, "hash": 1}  # no folder: nothing to claim
    frozen = with_epochs(replace(recipe("scan", "smoke"), freeze_encoder=True, scan_view=View()), 1)
    scan.fit(digits.images, frozen, run_dir=tmp_path / "features")
    assert list((tmp_path / "features").glob("features-*")) and counted["hash"] == 2


def test_a_run_folder_has_one_config_whose_checksum_knows_no_labels(digits, counted, tmp_path):
    run.fit("scan", digits, recipe("scan", "smoke"), tmp_path)
    assert counted == {"data": 1, "check": 1, "claim": 1, "hash": 1}
    (kept,) = tmp_path.rglob("config.json")
    assert kept.parent == tmp_path
    checksum = json.loads(kept.read_bytes())["data"]["checksum"]
    assert checksum == replace(digits, labels=None).checksum != digits.checksum


def test_settings_that_a_method_refuses_itself_leave_the_folder_free(digits, tmp_path):
    """`check_fit` cannot know that IDEC needs a decoder; the method says so, after the claim."""
    config, wrong = recipe("idec", "smoke"), convnets.encoder("small_cnn", digits.images)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("mine")
    direct, whole = tmp_path / "direct", tmp_path / "whole"
    with pytest.raises(ValueError, match="it needs a decoder"):
        idec.fit(digits.images, config, encoder=wrong, run_dir=direct)
    with pytest.raises(ValueError, match="it needs a decoder"):
        run.fit("idec", digits, config, whole, encoder=wrong)
    for out in (direct, whole):
        assert out.exists() and not list(out.rglob("config.json"))
    idec.fit(digits.images, config, run_dir=direct)
    kept = (direct / "config.json").read_bytes()
    with pytest.raises(ValueError, match="  encoder: there '', now '[0-9a-f]{16}'"):
        idec.fit(digits.images, config, encoder=wrong, run_dir=direct)
    assert (direct / "config.json").read_bytes() == kept


def test_a_run_that_has_begun_keeps_its_folder(digits, tmp_path):
    def refuse(stage, epoch, objective, losses):
        raise ValueError("too late")

    (tmp_path / "scratch").mkdir()
    for out in (tmp_path / "direct", tmp_path / "linked"):
        out.mkdir()
    (tmp_path / "linked" / "pretext").symlink_to(tmp_path / "scratch")
    config = recipe("scan", "smoke")
    with pytest.raises(ValueError, match="too late"):
        scan.fit(digits.images, config, monitor=refuse, run_dir=tmp_path / "direct")
    with pytest.raises(ValueError, match="too late"):
        run.fit("scan", digits, config, tmp_path / "linked", monitor=refuse)
    for out in (tmp_path / "direct", tmp_path / "linked"):
        assert (out / "config.json").exists()


def test_the_folder_of_an_older_version_is_refused_in_plain_words(digits, tmp_path):
    config = recipe("scan", "smoke")
    flags = {"config": asdict(config), "method": "scan", "encoder": "", "official_neighbors": False}
    old = {"config": flat(flags), "data": {"checksum": digits.checksum}}
    for place in (tmp_path, tmp_path / "checkpoint"):  # as dcl fit had it
        place.mkdir(exist_ok=True)
        checkpoint.save(place / "pretext.pt", {})
    (tmp_path / "config.json").write_text(json.dumps(old))
    for again in (lambda: scan.fit(digits.images, config, run_dir=tmp_path),
                  lambda: run.fit("scan", digits, config, tmp_path)):  # fmt: skip
        with pytest.raises(ValueError, match="a run of another version .* cannot be resumed"):
            again()
    del old["config"]["config.heads"]
    old |= {"format": checkpoint.FORMAT, "data": {"checksum": "0"}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match="holds a run with other parameters") as refused:
        scan.fit(digits.images, config, run_dir=tmp_path)
    said = str(refused.value)
    assert "  official_neighbors: there False, now no such setting\n" in said
    assert "  config.heads: there no such setting, now 2\n" in said
    assert "  data.checksum: there '0', now '" in said
    assert said.endswith("Choose another run_dir, or remove that folder.")


@dataclass(frozen=True)
class Config:
    seed: int = 3


def test_the_body_gets_a_copy_of_the_encoder_and_the_seed(digits):
    def body(images, config: Config, encoder, run) -> dict:
        """Words."""
        return {"drawn": torch.rand(()), "encoder": encoder, "run": run}

    fit = algorithm.algorithm(body)
    mine, state = convnets.encoder("small_cnn", digits.images), torch.get_rng_state()
    found = fit(digits.images, Config(), encoder=mine)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    assert found["drawn"] == torch.rand(())
    assert found["encoder"] is not mine
    assert all(map(torch.equal, found["encoder"].parameters(), mine.parameters()))
    assert found["run"] == {"monitor": None, "run_dir": None}
    assert fit.__doc__ == "Words."


def test_the_pretext_takes_the_seed_of_the_method(digits):
    config = replace(recipe("dec", "smoke"), seed=7)
    made = algorithm.pretrain(
        autoencoder, digits.images, config, {"monitor": None, "run_dir": None}
    )
    assert made.config == replace(config.pretext, seed=7)


@pytest.mark.parametrize("stem", [stem for stem in METHODS if stem != "idec"])  # needs a decoder
def test_an_encoder_without_layers_is_not_replaced(stem, digits):
    """`nn.Sequential()` is false, since its length is 0, and yet an encoder."""
    bare = nn.Sequential()
    bare.out_dim = 256
    module = import_module(f"dcl.methods.{stem}")
    assert bare in {*module.model(digits.images, recipe(stem, "smoke"), bare).modules()}
    assert algorithm.pretrain(autoencoder, digits.images, None, {}, bare) is bare
