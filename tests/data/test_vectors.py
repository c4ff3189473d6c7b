"""Plain vectors (N,d): what is taken, what is refused, and the way through loop and file."""

import csv
import hashlib
import html
import io
import json
import pickle
import re
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from dcl import methods
from dcl.algorithm import check_fit
from dcl.app import report, run
from dcl.app.cli import IMPOSSIBLE, OK, WARNING, main
from dcl.app.estimator import DeepClusterer
from dcl.app.source import Source
from dcl.config import TrainConfig
from dcl.data import Data, load, splits
from dcl.data.vectors import vectors_of
from dcl.measure.baselines import baselines
from dcl.methods import swav
from dcl.objective import Objective
from dcl.recipes import recipe
from dcl.train import batches, extract, train

X = torch.tensor([[0.5, -3.0], [1e6, 2.0], [0.0, 0.25]])


def data(x=X, labels=None):
    return Data(x, labels, None, "toy", "all")


# ---------------------------------------------------------------- what is taken


def test_data_holds_vectors_as_they_are():
    d = data(labels=torch.tensor([2, 0, 2]))
    assert d.images is X and len(d) == 3 and d.vectors and (d.channels, d.size) == (0, 0)
    by_hand = hashlib.sha256(b"(3, 2)" + X.numpy().astype("<f4").tobytes())
    assert data().checksum == by_hand.hexdigest()[:16]
    changed = X.clone()
    changed[2, 1] += 1e-6
    assert len({data(x).checksum for x in (X, changed, X.flip(0), X.view(2, 3))}) == 4
    assert data(X.T.contiguous().T).checksum == data().checksum  # same values, other memory
    part = d.subset(2, seed=0)
    rows = [X.tolist().index(row) for row in part.images.tolist()]
    assert rows == sorted(set(rows)) and part.labels.tolist() == [[2, 0, 2][k] for k in rows]
    assert not Data(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), None, None, "", "all").vectors


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (X.double(), TypeError, r"must be a float32 tensor; got torch.float64 \(3, 2\)"),
        (X.long(), TypeError, "must be a float32 tensor; got torch.int64"),
        (X.byte(), TypeError, r"must be a float32 tensor; got torch.uint8 \(3, 2\)"),
        (X[0], ValueError, r"vectors must be \(N,d\), none 0; got \(2,\)"),
        (X[None], ValueError, r"vectors must be \(N,d\), none 0; got \(1, 3, 2\)"),
        (X[:0], ValueError, r"none 0; got \(0, 2\)"),
        (X[:, :0], ValueError, r"none 0; got \(3, 0\)"),
        (X.log(), ValueError, "NaN or infinity in 2 of 3 rows, the first is row 0"),
        (X / torch.tensor([1, 0.0]), ValueError, "NaN or infinity in 3 of 3 rows"),
        (-1 / X[1:], ValueError, "NaN or infinity in 1 of 2 rows, the first is row 1"),
        (X.numpy(), TypeError, "images must be a uint8 tensor; got float32"),
        (X[None, None], TypeError, "images must be a uint8 tensor; got torch.float32"),
    ],
)
def test_what_is_no_vector_is_named(x, error, message):
    with pytest.raises(error, match=message):
        data(x)


def test_floats_of_any_kind_become_float32():
    rows = X.tolist()
    for x in (rows, X.numpy(), X.double(), np.array(rows, ">f8"), np.asfortranarray(X.numpy())):
        found = vectors_of(x)
        assert found.dtype == torch.float32 and torch.equal(found, X)
    half = vectors_of(X[2:].half())
    assert half.dtype == torch.float32 and half.tolist() == X[2:].tolist()
    for x in (X.byte(), X.long().numpy(), [[1, 2]], np.array([["a"]]), X.bool(), 1j * X.numpy()):
        with pytest.raises(TypeError, match=r"X must be floats to be vectors .*divide by 255"):
            vectors_of(x)
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 1 rows"):
        data(vectors_of([[1e300, 0.0]]))  # too large for float32


# ---------------------------------------------------------------- from a file


def test_a_file_of_vectors(tmp_path):
    path = tmp_path / "my vectors.npy"
    np.save(path, X.double().numpy())
    d = load(str(path))
    assert torch.equal(d.images, X) and d.images.dtype == torch.float32
    assert (d.name, d.split, d.labels, d.files) == ("my vectors", "all", None, None)
    assert splits(str(path)) == ("all",)
    with pytest.raises(ValueError, match="split must be all; got 'test'"):
        load(str(path), "test")
    with pytest.raises(ValueError, match="size is for images"):
        load(str(path), size=32)
    (tmp_path / "photos.npy").mkdir()
    with pytest.raises(ValueError, match="name must be one of"):
        load(str(tmp_path / "photos.npy"))


class Malicious:
    ran = False

    def __reduce__(self):
        return (setattr, (Malicious, "ran", True))


def of(x, save=np.save):
    """The bytes of a file with an array, or of an archive of two."""
    file = io.BytesIO()
    save(file, x) if save is np.save else save(file, a=x, b=x)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", ValueError, r"x.npy' must be a .npy file of images or of floats \(N,d\)"),
        (b"1,2\n3,4\n", ValueError, "must be a .npy file of images or of floats"),
        (pickle.dumps(Malicious()), ValueError, "must be a .npy file of images or of floats"),
        (of(np.array([Malicious()], object)), ValueError, "must be a .npy file of images or of"),
        (of(X.numpy())[:-4], ValueError, "must be a .npy file of images or of floats"),
        (of(X.numpy(), np.savez), ValueError, r"hold one array; it is an archive of \['a', 'b'\]"),
        (of(X.byte().numpy()), TypeError, r"x.npy' must be floats .* got uint8 \(3, 2\)"),
        (of(X[0].numpy()), ValueError, r"or vectors \(N,d\); got \(2,\)"),
    ],
)
def test_what_is_no_file_of_vectors_is_named(tmp_path, content, error, message):
    path = tmp_path / "x.npy"
    with pytest.raises(FileNotFoundError, match=r"there must be a .npy file at .*x.npy'"):
        load(str(path))
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        load(str(path))
    assert not Malicious.ran


# ---------------------------------------------------------------- through the loop


class Centre(Objective):
    """Learns the mean row: small enough to follow by hand."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Identity()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, x, i):
        assert torch.equal(x, X[i])
        return {"loss": (x - self.w).square().sum(1).mean()}


def test_the_loop_takes_vectors_as_they_are():
    for x, i in batches(X, torch.tensor([2, 0]), 1):
        assert x.dtype == torch.float32 and torch.equal(x, X[i])
    objective = Centre()
    train(objective, X, TrainConfig(epochs=1, batch_size=3, lr=0.25, momentum=0.0))
    assert torch.allclose(objective.w, X.mean(0) / 2)  # d/dw (x - w)^2 at 0 is -2x
    assert torch.equal(extract(objective.embed, X), X)
    assert X[1, 0] == 1e6 and X[0, 1] == -3  # nor were they changed


@dataclass(frozen=True)
class Config:
    takes_vectors: ClassVar[bool] = True
    n_clusters: int = 2


@dataclass(frozen=True)
class Images:
    n_clusters: int = 2


def test_a_method_takes_vectors_when_its_config_says_so():
    assert check_fit(X, Config()).vectors
    with pytest.raises(ValueError, match="test_vectors needs images"):
        check_fit(X, Images())
    with pytest.raises(ValueError, match=r"^swav needs images \(N,C,H,W\); got vectors \(3, 2\)$"):
        swav.fit(X, recipe("swav", "smoke"))
    with pytest.raises(ValueError, match="number of vectors, 3; got 4"):
        check_fit(X, Config(n_clusters=4))
    with pytest.raises(ValueError, match="NaN or infinity"):
        check_fit(X.log(), Config())
    check_fit(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), Config())  # and images as well


# ---------------------------------------------------------------- a run folder

COUNT, LENGTH, GROUPS = 180, 5, 3


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three groups of vectors, far apart, x.npy, and where each row belongs, y.npy."""
    folder, random = tmp_path_factory.mktemp("vectors"), np.random.default_rng(0)
    y = random.integers(GROUPS, size=COUNT)
    centres = np.array([[6, 0, 0, 0, 1], [0, 6, 0, 0, 1], [0, 0, -6, 0, 1]])
    x = centres[y] + random.normal(size=(COUNT, LENGTH)) * [1, 1, 1, 1, 0]  # the last tells nothing
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", np.array(["abc"[k] for k in y]))
    return folder


def fit(files, out, *more):
    asked = ["--data", str(files / "x.npy"), "--out", str(out), "--recipe", "smoke"]
    return main(["fit", "dec", *asked, "--clusters", str(GROUPS), *more])


@pytest.fixture(scope="module")
def done(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "v"
    assert fit(files, out) in (OK, WARNING)
    return out


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_on_vectors_leaves_what_a_run_leaves(files, done, capfd):
    names = {p.name for p in done.iterdir() if not p.name.startswith(".")}
    assert names == {
        "config.json", "log.jsonl", "model.safetensors", "assignments.csv",
        "pretext", "train.pt", "health.json", "images.csv", "report.html",
        "duplicates.csv", "outliers.csv",
    }  # fmt: skip
    found = table(done / "assignments.csv")
    assert [row["file"] for row in found] == [str(k) for k in range(COUNT)]
    assert list(found[0]) == ["file", "cluster", "confidence", "distance"]
    sizes = [sum(int(row["cluster"]) == k for row in found) for k in range(GROUPS)]
    assert json.loads((done / "health.json").read_text())["sizes"] == sizes
    assert run.settings(done).source == Source(str(files / "x.npy"))
    assert main(["report", str(done)]) in (OK, WARNING)
    assert f"{COUNT} vectors in 3 of 3 clusters" in capfd.readouterr().out
    # the groups are so far apart that they must be found, with the labels in either kind of file
    labels = files / "y.csv"
    y = np.load(files / "y.npy")
    labels.write_text("file,label\n" + "".join(f"{k},{y[k]}\n" for k in reversed(range(COUNT))))
    for given in (labels, files / "y.npy"):
        assert main(["evaluate", str(done), "--labels", str(given)]) == OK
        assert "ACC 1.000" in capfd.readouterr().out


def test_labels_that_do_not_fit_are_refused(files, done, tmp_path, capfd):
    np.save(tmp_path / "y.npy", np.arange(7))
    for labels, message in (
        (tmp_path / "y.npy", r"labels must be (180,), one per row; got (7,)"),
        ("folders", "labels must name files of the run"),
    ):
        assert main(["evaluate", str(done), "--labels", str(labels)]) == IMPOSSIBLE
        assert message in capfd.readouterr().err


def test_predict_gives_the_same_clusters_to_the_same_vectors(files, done, tmp_path, capfd):
    assert main(["predict", str(done), str(files / "x.npy"), "--out", str(tmp_path / "p")]) == OK
    assert (tmp_path / "p").read_bytes() == (done / "assignments.csv").read_bytes()
    np.save(tmp_path / "few.npy", np.load(files / "x.npy")[7:9].astype(np.float32))
    assert main(["predict", str(done), str(tmp_path / "few.npy")]) == OK
    lines = list(csv.DictReader(capfd.readouterr().out.splitlines()))
    known = table(done / "assignments.csv")[7:9]
    assert [row["file"] for row in lines] == ["0", "1"]
    assert [row["cluster"] for row in lines] == [row["cluster"] for row in known]


def test_predict_refuses_another_kind(files, done, tmp_path, capfd):
    np.save(tmp_path / "wide.npy", np.zeros((3, LENGTH + 1)))
    own, other = str(done), "scan-digits-quick-seed0"
    for folder, words, message in (
        (own, tmp_path / "wide.npy", "must be float32 (N, 5) as in training; got torch.float32"),
        (own, "digits", "data must be a .npy file of vectors (N,d), as in training; got 'digits'"),
        (own, tmp_path, "data must be a .npy file of vectors (N,d), as in training"),
        (other, files / "x.npy", "data must be images, as in training; got"),
    ):
        assert main(["predict", folder, str(words)]) == IMPOSSIBLE
        err = capfd.readouterr().err
        assert message in err and err.count("\n") == 1


def test_a_method_that_needs_images_says_so_before_any_work(files, tmp_path, capfd):
    takers = [s for s, m in methods.methods().items() if getattr(m.Config, "takes_vectors", False)]
    assert "dec" in takers and "swav" not in takers
    message = f"method swav needs images; got vectors (N,d), taken by {', '.join(takers)}"
    out = tmp_path / "x"
    assert main(["fit", "swav", "--data", str(files / "x.npy"), "--out", str(out)]) == IMPOSSIBLE
    assert capfd.readouterr().err == f"dcl: {message}\n"
    with pytest.raises(ValueError, match=re.escape(message)):
        DeepClusterer("swav", run_dir=out).fit(np.load(files / "x.npy"))
    data = load(str(files / "x.npy"))
    with pytest.raises(ValueError, match=re.escape(message)):
        run.fit("swav", data, recipe("swav", "smoke"), out)
    assert not out.exists()
    for more, said in (
        (["--size", "32"], "size is for images"),
        (["--encoder", "resnet18"], "encoder must be a torch module for vectors; 'resnet18'"),
        (["--split", "test"], "split must be all; got 'test'"),
        (["--limit", "2"], "as many vectors as clusters, 3; got 2"),
        (["--config.pretext.encoder", "cnn"], "cnn needs images"),
    ):
        assert fit(files, out, *more) == IMPOSSIBLE
        assert said in capfd.readouterr().err
        assert not (out / "config.json").exists()
    assert main(["list"]) == OK
    lines = capfd.readouterr().out.splitlines()
    found = [lines[k - 2].split()[0] for k, line in enumerate(lines) if "takes vectors" in line]
    assert found == takers


def test_how_many_clusters_of_vectors(files, done, capfd):
    for words in (files / "x.npy", done):
        assert main(["choose-k", str(words), "--most", "6"]) == OK
        best = capfd.readouterr().out.splitlines()[-1]
        assert best.startswith("3 groups stand out") or best.startswith("Perhaps 3 clusters")
    assert main(["choose-k", str(files / "x.npy"), "--limit", "5"]) == IMPOSSIBLE
    assert "data must have at least 6 vectors; got 5" in capfd.readouterr().err


# ---------------------------------------------------------------- in Python


@pytest.fixture(scope="module")
def x(files):
    return np.load(files / "x.npy")


@pytest.fixture(scope="module")
def fitted(x):
    return DeepClusterer("dec", GROUPS, recipe="smoke").fit(x)


def test_the_estimator_takes_vectors(fitted, files, done, x, tmp_path):
    assert fitted.n_features_in_ == LENGTH and fitted.probabilities_.shape == (COUNT, GROUPS)
    assert fitted.labels_.tolist() == [int(r["cluster"]) for r in table(done / "assignments.csv")]
    assert fitted.transform(x).shape == (COUNT, 10)
    for form in (x.tolist(), x.astype(np.float32), torch.tensor(x), str(files / "x.npy")):
        assert np.array_equal(fitted.predict(form), fitted.labels_)
    y = np.unique(np.load(files / "y.npy"), return_inverse=True)[1]
    assert fitted.score(x, y) == 1.0
    scaled = make_pipeline(StandardScaler(), clone(fitted)).fit(x)
    assert scaled.score(x, y) == 1.0
    fitted.save(tmp_path / "m.safetensors")
    again = DeepClusterer.load(tmp_path / "m.safetensors")
    assert np.array_equal(again.predict_proba(x), fitted.probabilities_)
    clusters = again.clusters_
    assert clusters.shape == (LENGTH,) and clusters.vectors and len(clusters.prototypes) == GROUPS
    # the row that stands for a cluster lies at distance 0
    assert clusters.assign(vectors_of(x)).distance.min() < 1e-6


@pytest.mark.filterwarnings("ignore:to fit 180 vectors")
@pytest.mark.parametrize("method", ["scan", "spice", "temi"])
def test_vectors_are_features_for_heads_alone(method, x, tmp_path):
    made = DeepClusterer(method, GROUPS, epochs=2, run_dir=tmp_path / "run").fit(x)
    assert not list((tmp_path / "run").glob("features-*"))  # the vectors are there already
    assert np.array_equal(made.transform(x), x.astype(np.float32))
    made.save(tmp_path / "m.safetensors")
    again = DeepClusterer.load(tmp_path / "m.safetensors")
    assert np.array_equal(again.predict_proba(x), made.probabilities_)
    # no pretext is trained, so what it would need is not asked for
    pretext = replace(made.clusters_.config.pretext, train=TrainConfig(1, 10**6))
    check_fit(vectors_of(x), replace(made.clusters_.config, pretext=pretext))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x[:, :4], ValueError, "X has 4 features, but .* expecting 5 features"),
        (lambda x: np.zeros((3, 5, 5), np.uint8), ValueError, r"got torch.uint8 \(3, 1, 5, 5\)"),
        (lambda x: x / (np.arange(COUNT)[:, None] != 7), ValueError, "in 1 of 180 .* is row 7"),
        (lambda x: x.astype(np.int64), TypeError, "X must be floats .* got int64"),
    ],
)
def test_the_estimator_refuses_what_it_was_not_fitted_to(fitted, x, change, error, message):
    with np.errstate(all="ignore"), pytest.raises(error, match=message):
        fitted.predict(change(x))


def test_baselines_name_vectors(x, files):
    truth = torch.from_numpy(np.unique(np.load(files / "y.npy"), return_inverse=True)[1])
    rows = baselines(Data(vectors_of(x), truth, None, "toy", "all"), nn.Identity(), GROUPS)
    assert list(rows) == ["k-means on vectors", "k-means on PCA", "untrained network"]
    assert rows["k-means on vectors"]["ACC"] == 1.0


# ---------------------------------------------------------------- the page


def words(page):
    """What is read on a page: no style, no program, no tags, no pictures."""
    body = re.sub(r"<style>.*?</style>|<head>.*?</head>|<script>.*?</script>", "", page, flags=re.S)
    return html.unescape(re.sub(r"<[^>]*>", " ", body))


def test_the_page_about_vectors(done):
    text = words((done / "report.html").read_text().partition("<script")[0])
    assert "180 vectors in 3 clusters" in text and re.search("columns *5", text)
    assert "image" not in text.lower() and "picture" not in text and "contact" not in text
    for heading in ("Health", "Losses", "Clusters", "Map", "Facts", "Nearest to the prototype"):
        assert heading in text
    assert "data:image/png" in (done / "report.html").read_text()  # the drawings


def test_each_cluster_shows_its_nearest_and_its_doubtful_rows(tmp_path):
    n = 40
    angle = torch.linspace(0, 0.5, n)
    z = torch.stack([angle.cos(), angle.sin()], 1)  # row 0 at one end, and all others further on
    z[n // 2 :] = -z[n // 2 :]
    sure = torch.linspace(0.95, 0.55, n)
    p = torch.stack([sure, 1 - sure], 1)
    p[n // 2 :] = p[n // 2 :].flip(1)
    x = torch.zeros(n, 30)
    x[:, 7], x[: n // 2, 21] = 4.0, 2.0  # equal in all; high in the first cluster
    x[5, 3] = 1.0
    page = report.report(tmp_path / "r.html", x, p, z).read_text()
    section = page[page.index('id="c0"') : page.index('id="c1"')]
    near, low = re.findall(r"<table>.*?</table>", section)
    ranks = [[int(k) for k in re.findall(r"<td>vector (\d+)</td>", part)] for part in (near, low)]
    # the surest two are 0 and 1, whose mean lies between them: either stands for the cluster
    standing = ranks[0][0]
    assert standing in (0, 1)
    away = [1 - float(z[standing] @ z[k]) for k in range(n // 2)]
    assert ranks[0] == sorted(range(n // 2), key=lambda k: (away[k], k))[:10]
    assert ranks[1] == list(range(n // 2))[::-1][:10]
    assert f"<td>{sure[19]:.2f}</td><td>{away[19]:.3f}</td>" in low
    # column 21: mean 2 in the cluster, 1 in all, deviation 1; column 3: 1/20, 1/40, .156
    assert "columns 21 (+1.0), 3 (+0.2), 0 (+0.0)" in section
    assert "21 (-1.0), 3 (-0.2)" in page[page.index('id="c1"') :]
    with pytest.raises(ValueError, match="files must name all 40 vectors; got 1"):
        report.report(tmp_path / "r.html", x, p, z, files=["a"])
    with pytest.raises(TypeError, match="must be a float32 tensor"):
        report.report(tmp_path / "r.html", x.double(), p, z)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("collapse", "Every vector is in the same cluster"),
        ("nothing is confident", "No vector clearly belongs to a cluster"),
        ("collapsed features", "All vectors look alike to the encoder"),
    ],
)
def test_advice_about_vectors_speaks_of_vectors(tmp_path, kind, said):
    n = 60
    p = torch.eye(4)[torch.arange(n) % 4] * 0.9 + 0.025
    z = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    p, z = {
        "collapse": (torch.eye(4)[[0] * n], z),
        "nothing is confident": ((0.05 * p).softmax(1), z),
        "collapsed features": (p, torch.ones_like(z)),
    }[kind]
    text = words(report.report(tmp_path / "r.html", z, p, z).read_text())
    assert kind in text and said in text
    assert "image" not in text.lower() and "contact sheet" not in text
