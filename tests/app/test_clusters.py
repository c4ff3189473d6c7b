import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dcl import methods
from dcl.app.clusters import Clusters, fitted, sha256, shipped
from dcl.config import flat, unflat
from dcl.data import load
from dcl.measure.baselines import prototypes
from dcl.recipes import recipe, recipes

METHODS = sorted(methods.methods())


@pytest.fixture(scope="module")
def images():
    return load("digits").subset(200).images


@pytest.fixture(scope="module")
def trained(images):
    done = {}

    def fit(name):
        if name not in done:
            module = methods.method(name)
            model = module.fit(images, recipe(name, "smoke"))
            done[name] = fitted(model, name, images)
        return done[name]

    return fit


def test_methods_are_the_files_that_cluster():
    assert {"scan", "swav"} <= {*METHODS} and not {"simclr", "selflabel"} & {*METHODS}
    with pytest.raises(ValueError, match=f"must be one of {', '.join(METHODS)}; got 'simclr'"):
        methods.method("simclr")


@pytest.mark.parametrize("name", METHODS)
def test_every_recipe_comes_back_from_json(name):
    module = methods.method(name)
    for config in recipes(name).values():
        assert unflat(module.Config, json.loads(json.dumps(flat(config)))) == config
        for field, neutral in getattr(config, "gone", {}).items():  # recorded while it was there
            if hasattr(config, field):  # gone from DEC, not from IDEC
                continue
            assert unflat(module.Config, {**flat(config), field: neutral}) == config
            with pytest.raises(ValueError, match=f"Config has no field {field}"):
                unflat(module.Config, {**flat(config), field: "another"})
    with pytest.raises(ValueError, match="Config has no field nonsense"):
        unflat(module.Config, {"nonsense": 1})


@pytest.mark.parametrize("name", METHODS)
def test_what_is_saved_assigns_as_before(name, trained, images, tmp_path):
    clusters, assignment = trained(name)
    clusters.save(tmp_path / "m.safetensors")
    again = Clusters.load(tmp_path / "m.safetensors")
    assert (again.method, again.shape, again.config) == (name, (1, 16, 16), clusters.config)
    for a, b in zip(assignment, again.assign(images), strict=True):
        assert torch.equal(a, b)
    one = again.assign(images[7:8])  # a new image does not need the others
    assert one.clusters[0] == assignment.clusters[7]
    assert one.distance[0] == pytest.approx(float(assignment.distance[7]), abs=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_an_assignment_says_what_it_means(name, trained):
    clusters, a = trained(name)
    assert torch.allclose(a.probabilities.sum(1), torch.ones(200), atol=1e-5)
    assert torch.equal(a.clusters, a.probabilities.argmax(1))
    assert torch.equal(a.confidence, a.probabilities.amax(1))
    rows = prototypes(a.vectors, a.probabilities)
    for k, row in enumerate(rows.tolist()):
        if row < 0:
            assert not clusters.prototypes[k].any()
        else:  # the prototype is no distance from itself, and distances are 1 - cosine
            assert a.distance[row] == pytest.approx(0, abs=1e-6)
            member = int((a.clusters == k).nonzero()[-1])
            cosine = nn.functional.cosine_similarity(a.vectors[member], a.vectors[row], dim=0)
            assert a.distance[member] == pytest.approx(1 - float(cosine), abs=1e-5)


def test_nothing_of_the_training_set_is_published(trained, tmp_path):
    for name in METHODS:
        if name == "agae":  # a new image has the code of a training image, and its page says so
            continue
        clusters = trained(name)[0]
        clusters.save(tmp_path / name)
        published = load_file(tmp_path / name)
        assert not {*clusters.model.transient} & published.keys()
        # pseudo-labels and neighbours have a row for each of the 200 images
        assert 200 not in {n for value in published.values() for n in value.shape}, name


def test_another_size_is_refused(trained, images):
    clusters, _ = trained("scan")
    for wrong in (images[:, :, :8], images.expand(-1, 2, -1, -1), images.float()):
        with pytest.raises(ValueError, match=r"images must be uint8 \(N, 1, 16, 16\)"):
            clusters.assign(wrong)


def test_a_network_of_your_own_must_be_there_again(images, tmp_path):
    scan = methods.method("scan")
    torch.manual_seed(0)
    own = nn.Sequential(nn.Flatten(), nn.Linear(256, 12))
    own.out_dim = 12
    model = scan.fit(images, replace(recipe("scan", "frozen"), n_clusters=4), encoder=own)
    clusters, a = fitted(model, "scan", images, "module")
    clusters.save(tmp_path / "m")
    with pytest.raises(ValueError, match="encoder must be given"):
        Clusters.load(tmp_path / "m")
    fresh = nn.Sequential(nn.Flatten(), nn.Linear(256, 12))
    fresh.out_dim = 12
    assert torch.equal(Clusters.load(tmp_path / "m", encoder=fresh).assign(images).clusters, a[0])
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(256, 13))
    wrong.out_dim = 13
    with pytest.raises(ValueError, match="path must fit its own metadata"):
        Clusters.load(tmp_path / "m", encoder=wrong)


def test_the_sha256_of_a_file_that_came_over_a_network_is_compared(trained, images, tmp_path):
    clusters, assignment = trained("scan")
    path = tmp_path / "m.safetensors"
    clusters.save(path)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["config"])["n_clusters"] == clusters.n_clusters
    whole = path.read_bytes()
    own = hashlib.sha256(whole).hexdigest()
    assert sha256(path) == own
    again = Clusters.load(path, checksum=own.upper()).assign(images)
    assert torch.equal(again.clusters, assignment.clusters)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit of one weight: loads all right
    Clusters.load(path)
    with pytest.raises(ValueError, match=f"path must have the sha256 {own}; .* has "):
        Clusters.load(path, checksum=own)


def test_a_network_of_the_package_is_loaded_by_name(trained, images, tmp_path, monkeypatch):
    monkeypatch.setattr("dcl.app.clusters.WEIGHTS", tmp_path)
    assert shipped() == []
    with pytest.raises(FileNotFoundError, match="or one of none yet; no file at scan-x"):
        Clusters.load("scan-x")
    clusters, assignment = trained("scan")
    clusters.save(tmp_path / "scan-x.safetensors")
    assert shipped() == ["scan-x"]
    assert torch.equal(Clusters.load("scan-x").assign(images).clusters, assignment.clusters)


def test_what_is_no_published_model_is_refused(trained, tmp_path):
    clusters, _ = trained("scan")
    path = tmp_path / "m.safetensors"
    with pytest.raises(FileNotFoundError, match="no file at"):
        Clusters.load(path)
    clusters.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        Clusters.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="path must hold 'dcl clusters 1'"):
        Clusters.load(path)
    torch.save({"x": Malicious()}, path)  # a pickle is not even opened
    with pytest.raises(ValueError, match="must be a safetensors file"):
        Clusters.load(path)
    assert not Malicious.ran


class Malicious:
    ran = False

    def __reduce__(self):
        return (setattr, (Malicious, "ran", True))
