import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from dcl.app import run
from dcl.app.estimator import DeepClusterer
from dcl.data import load
from dcl.data.arrays import tensor_of
from dcl.measure.metrics import accuracy
from dcl.methods.scan import Config


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


def never(*_, **__):
    raise AssertionError("worked before it looked")


NO_GPU = "cuda" if not torch.cuda.is_available() else "cuda:77"
WRONG = [
    ("n_clusters", 3.0, TypeError, "an integer; got 3.0"),
    ("n_clusters", "3", TypeError, "an integer; got '3'"),
    ("n_clusters", True, TypeError, "an integer; got True"),
    ("n_clusters", None, TypeError, "an integer; got None"),
    ("n_clusters", -1, ValueError, "at least 2; got -1"),
    ("epochs", 2.0, TypeError, "an integer or None; got 2.0"),
    ("epochs", 0, ValueError, "at least 1; got 0"),
    ("size", "32", TypeError, "an integer or None; got '32'"),
    ("size", 4, ValueError, "at least 8; got 4"),
    ("config", {"heads": 2}, TypeError, "a dcl.methods.dec.Config or None; got {'heads': 2}"),
    ("config", Config(), TypeError, "a dcl.methods.dec.Config or None; got Config"),
    ("device", None, TypeError, "a text or device; got None"),
    ("device", "tpu", ValueError, "auto, cpu or an available GPU; got 'tpu'"),
    ("device", NO_GPU, ValueError, "auto, cpu or an available GPU; got 'cuda"),
    ("method", None, TypeError, "a text; got None"),
    ("method", "kmeans", ValueError, "one of .*; got 'kmeans'"),
    ("recipe", None, TypeError, "a text; got None"),
    ("recipe", "fast", ValueError, "one of .*; got 'fast'"),
    ("encoder", 18, TypeError, "a text or Module or None; got 18"),
    ("encoder", "resnet5", ValueError, "one of .*; got 'resnet5'"),
    ("random_state", 0.5, TypeError, "an integer or RandomState or None; got 0.5"),
    ("random_state", -1, ValueError, "at least 0; got -1"),
    ("run_dir", 7, TypeError, "a text or Path or None; got 7"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), WRONG)
def test_a_wrong_parameter_is_named_before_work(name, value, error, message, monkeypatch):
    monkeypatch.setattr(run, "fit", never)
    monkeypatch.setattr(DeepClusterer, "_data", never)
    with pytest.raises(error, match=f"^{name} must be {message}"):
        DeepClusterer(**{"method": "dec", "recipe": "smoke", name: value}).fit("no such folder")


@pytest.mark.parametrize("wrong", [{"heads": 2.0}, {"normalize": 1}, {"entropy_weight": "5"}])
def test_a_setting_of_another_type_is_refused(wrong):
    with pytest.raises(TypeError, match=f"^{[*wrong][0]} must be .*; got {[*wrong.values()][0]!r}"):
        Config(**wrong)


SMALL = {"method": "dec", "recipe": "smoke"}


@pytest.fixture(scope="module")
def blobs():
    random = np.random.default_rng(0)
    centres = 4 * np.eye(5)[[0, 1, 2] * 20]
    return (centres + 0.2 * random.standard_normal((60, 5))).astype(np.float32)


@pytest.mark.filterwarnings("ignore:to fit")
def test_scikit_learn_s_kinds_of_numbers_and_outputs(blobs):
    small = DeepClusterer(**SMALL, n_clusters=np.int64(3), epochs=np.int32(1))
    seeded = [clone(small).set_params(random_state=s) for s in (7, np.int64(7))]
    assert np.array_equal(*[e.fit(blobs).probabilities_ for e in seeded])
    drawn = [small.set_params(random_state=s).fit(blobs).clusters_ for s in (None, None)]
    assert drawn[0].config.seed != drawn[1].config.seed
    same = [np.random.RandomState(3) for _ in range(2)]
    same = [small.set_params(random_state=s).fit(blobs).clusters_.config.seed for s in same]
    assert same[0] == same[1]
    assert [*small.get_feature_names_out()] == [f"deepclusterer{k}" for k in range(10)]
    assert small.set_output(transform="default").transform(blobs).shape == (60, 10)


@pytest.mark.filterwarnings("ignore:to fit")
def test_without_labels_the_score_prefers_three_clusters_to_two(blobs):
    search = GridSearchCV(DeepClusterer(**SMALL), {"n_clusters": [2, 3]}, cv=2).fit(blobs)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_params_ == {"n_clusters": 3}
    e = DeepClusterer(**SMALL, n_clusters=2)
    for p, wanted in (
        (np.eye(2)[[0, 1]], np.log(2)),
        (np.eye(2)[[0, 0]], 0),
        (np.full((2, 2), 0.5), 0),
    ):
        e.predict_proba = lambda X, p=p: p
        assert e.score(None) == pytest.approx(wanted)


class Two(DeepClusterer):
    """Two clusters where scikit-learn's checks ask for one, which is no clustering here."""

    def fit(self, X, y=None):
        asked, self.n_clusters = self.n_clusters, max(self.n_clusters, 2)
        try:
            return super().fit(X, y)
        finally:
            self.n_clusters = asked


EXCLUDED = {
    "check_estimators_dtypes": "fits integers (N,d), which are refused: pixels, or counts?",
    "check_fit2d_predict1d": "an array (N,) is refused in words that name images, too",
    "check_array_api_input": "needs SCIPY_ARRAY_API",
}


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([Two("dec", 3, recipe="smoke")], expected_failed_checks=lambda _: EXCLUDED)
def test_scikit_learn_s_own_checks(estimator, check):
    check(estimator)
