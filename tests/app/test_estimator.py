import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from dcl.app.estimator import DeepClusterer
from dcl.data import load
from dcl.data.arrays import tensor_of
from dcl.measure.metrics import accuracy


@pytest.fixture(scope="module")
def digits():
    return load("digits").subset(200)


@pytest.fixture(scope="module")
def fitted(digits):
    return DeepClusterer("scan", 6, recipe="smoke", epochs=2).fit(digits.images.numpy())


def test_it_keeps_the_manners_of_scikit_learn(fitted, digits):
    assert fitted.labels_.shape == (200,) and fitted.labels_.dtype == np.int64
    assert fitted.probabilities_.shape == (200, 6) and fitted.n_features_in_ == 256
    assert np.array_equal(fitted.predict(digits.images), fitted.labels_)
    assert np.array_equal(fitted.predict_proba(digits.images).argmax(1), fitted.labels_)
    assert fitted.transform(digits.images[:3]).shape == (3, 32)
    wanted = accuracy(digits.labels, fitted.labels_)
    assert fitted.score(digits.images, digits.labels.numpy()) == wanted
    twin = clone(fitted)
    assert twin.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError, match="call fit first"):
        twin.predict(digits.images)
    again = twin.set_params(random_state=0).fit_predict(digits.images)
    assert np.array_equal(again, fitted.labels_)  # the same seed, the same clusters
    other = clone(fitted).set_params(random_state=1).fit(digits.images)
    assert not np.allclose(other.probabilities_, fitted.probabilities_)
    assert np.array_equal(make_pipeline(clone(fitted)).fit_predict(digits.images), fitted.labels_)


def test_labels_play_no_part(fitted, digits):
    told = clone(fitted).fit(digits.images, digits.labels)
    assert np.array_equal(told.labels_, fitted.labels_)


def test_save_and_load(fitted, digits, tmp_path):
    fitted.save(tmp_path / "m.safetensors")
    again = DeepClusterer.load(tmp_path / "m.safetensors")
    assert (again.method, again.n_clusters) == ("scan", 6)
    assert np.array_equal(again.predict(digits.images), fitted.labels_)
    assert np.array_equal(clone(again).fit(digits.images).labels_, fitted.labels_)


def test_arrays_of_every_layout_are_the_same_images(fitted, digits):
    x = digits.images
    for form in (
        x.numpy(),
        x[:, 0].numpy(),
        x[:, 0],
        x.permute(0, 2, 3, 1).numpy(),
        x.float() / 255,
        digits,
    ):
        assert np.array_equal(fitted.predict(form), fitted.labels_)
    colour = torch.randint(256, (2, 16, 20, 3), dtype=torch.uint8)
    assert torch.equal(tensor_of(colour.numpy()), colour.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((3, 8), np.uint8), TypeError, r"X must be floats to be vec.* got uint8 \(3, 8\)"),
        (np.zeros(8), ValueError, r"X must be \(N,H,W\).* or vectors \(N,d\); got \(8,\)"),
        (np.zeros((3, 2, 8, 8), np.uint8), ValueError, "X must have 1 or 3 channels"),
        (np.full((3, 8, 8), 16.0), ValueError, r"X of floats must be in \[0,1\]; got 16 to 16"),
        (np.full((3, 8, 8), 4095), ValueError, r"whole numbers must be in 0..255; got .*\(int64\)"),
        (np.zeros((3, 8, 8), complex), TypeError, "X must hold numbers; got complex128"),
        (np.zeros((32, 32, 3)), ValueError, r"which looks like one, \(H,W,C\)"),
        (np.full((3, 8, 8), np.nan), ValueError, "got nan to nan"),
    ],
)
def test_what_is_no_image_is_refused(x, error, message):
    with pytest.raises(error, match=message):
        DeepClusterer().fit(x)


def test_parameters_are_checked_at_fit(digits):
    for wrong, message in (
        ({"method": "kmeans"}, "method must be one of"),
        ({"recipe": "fast"}, "recipe must be one of smoke"),
        ({"n_clusters": 1}, "n_clusters must be between 2"),
        ({"device": "cuda:77"}, "device must be"),
    ):
        with pytest.raises(ValueError, match=message):
            DeepClusterer(**{"recipe": "smoke", **wrong}).fit(digits.images)


def test_folders_and_a_run_that_goes_on(digits, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for k, image in enumerate(digits.images[:60, 0]):
        Image.fromarray(image.numpy()).save(folder / f"{k:02}.png")
    e = DeepClusterer(
        "deepcluster", 4, recipe="smoke", size=16, epochs=1, run_dir=tmp_path / "run"
    ).fit(folder)
    assert len(e.labels_) == 60 and (tmp_path / "run" / "report.html").exists()
    assert np.array_equal(e.predict(str(folder)), e.labels_)
    assert np.array_equal(clone(e).fit(folder).labels_, e.labels_)
    with pytest.raises(ValueError, match="n_clusters: there 4, now 5"):
        clone(e).set_params(n_clusters=5).fit(folder)
