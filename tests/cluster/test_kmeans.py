import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from dcl.cluster import kmeans as module
from dcl.cluster.kmeans import kmeans, split_empty, whiten
from dcl.measure.metrics import ari
from dcl.train import seeded


def blobs(k=6, n=600, d=5, spread=0.3, seed=0):
    with seeded(seed):
        y = torch.arange(n) % k
        return 4 * torch.randn(k, d)[y] + spread * torch.randn(n, d), y


def test_by_hand():
    x = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    r = kmeans(x, 2, init=torch.tensor([[0.0], [1.0]]))
    # {0},{1,10,12} -> centroids 0, 23/3 -> {0,1},{10,12} -> 0.5, 11 -> stands still
    assert r.labels.tolist() == [0, 0, 1, 1]
    assert r.centroids.flatten().tolist() == pytest.approx([0.5, 11])
    assert r.inertia == pytest.approx(0.25 + 0.25 + 1 + 1)
    assert r.labels.dtype == torch.int64 and r.centroids.dtype == torch.float32


@pytest.mark.parametrize("iterations", [1, 3, 100])
def test_equals_scikit_learn_from_the_same_start(iterations):
    x, _ = blobs(k=12, n=900, d=7, spread=2.0)
    start = x[:12]
    mine = kmeans(x, 12, init=start, iterations=iterations)
    theirs = KMeans(12, init=start.numpy(), n_init=1, max_iter=iterations, tol=0, algorithm="lloyd")
    theirs.fit(x.numpy())
    assert mine.inertia == pytest.approx(theirs.inertia_, rel=1e-5)
    assert (mine.labels.numpy() == theirs.labels_).mean() > 0.999
    assert torch.allclose(mine.centroids, torch.tensor(theirs.cluster_centers_), atol=1e-4)


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_finds_separated_groups(init):
    x, y = blobs(spread=0.05)
    with seeded(0), torch.autocast("cpu", torch.bfloat16):
        for own in (x, x.half(), x.double().requires_grad_()):
            found = kmeans(own, 6, n_init=10, init=init)
            assert ari(y, found.labels) == 1 and not found.centroids.requires_grad


def test_start_quality():
    # greedy k-means++ against random rows, and against scikit-learn's
    x, _ = blobs(k=30, n=900, spread=0.3)
    with seeded(0):
        plus = [kmeans(x, 30, iterations=1).inertia for _ in range(5)]
        random = [kmeans(x, 30, iterations=1, init="random").inertia for _ in range(5)]
    theirs = [
        KMeans(30, n_init=1, max_iter=1, random_state=s, tol=0).fit(x.numpy()).inertia_
        for s in range(5)
    ]
    assert max(plus) < min(random)
    assert np.mean(plus) < 1.3 * np.mean(theirs)


def test_seeded_and_best_of_n():
    x, _ = blobs(k=20, spread=1.5)
    with seeded(3):
        one = kmeans(x, 20)
        two = kmeans(x, 20)
    with seeded(3):
        again = kmeans(x, 20)
    with seeded(3):
        best = kmeans(x, 20, n_init=2)
    assert torch.equal(one.labels, again.labels) and not torch.equal(one.labels, two.labels)
    assert best.inertia == min(one.inertia, two.inertia)


def test_far_from_the_origin():
    # without measuring from the mean, float32 has no digits left for these distances
    x, y = blobs(k=4, n=400, d=3, spread=0.05)
    with seeded(0):
        r = kmeans(x + 10_000, 4, n_init=5)
    assert ari(y, r.labels) == 1
    assert r.inertia == pytest.approx(400 * 3 * 0.05**2, rel=0.3)


def test_blocks_do_not_change_anything(monkeypatch):
    x, _ = blobs(k=9, spread=2)
    whole = kmeans(x, 9, init=x[:9])
    monkeypatch.setattr(module, "BUDGET", 50)
    parts = kmeans(x, 9, init=x[:9])
    assert torch.equal(whole.labels, parts.labels)
    assert whole.inertia == pytest.approx(parts.inertia, rel=1e-6)


def test_spherical():
    with seeded(0):
        x = torch.randn(300, 6) * torch.rand(300, 1) * 5
        r = kmeans(x, 5, spherical=True)
    assert torch.allclose(r.centroids.norm(dim=1), torch.ones(5), atol=1e-5)
    cosine = F.normalize(x, dim=1) @ r.centroids.T
    assert (cosine.argmax(1) == r.labels).all()
    assert r.inertia == pytest.approx(float((1 - cosine.amax(1)).sum()), rel=1e-4)
    for k in range(5):
        mean = F.normalize(F.normalize(x[r.labels == k], dim=1).mean(0), dim=0)
        assert torch.allclose(mean, r.centroids[k], atol=1e-4)
    # lengths do not matter
    scaled = kmeans(x * torch.linspace(1, 9, 300)[:, None], 5, spherical=True, init=r.centroids)
    assert torch.equal(scaled.labels, r.labels)


def test_split_of_an_empty_cluster():
    c = torch.tensor([[2.0, -4.0, 8.0], [1.0, 1.0, 1.0], [7.0, 7.0, 7.0]])
    new = split_empty(c, torch.tensor([10, 1, 0]))  # a cluster of one cannot give
    e = 1 / 1024
    assert torch.equal(new[2], c[0] * torch.tensor([1 + e, 1 - e, 1 + e]))
    assert torch.equal(new[0], c[0] * torch.tensor([1 - e, 1 + e, 1 - e]))
    assert torch.equal(new[1], c[1])
    assert torch.equal(c[2], torch.full((3,), 7.0))  # the argument is left alone
    assert split_empty(c, torch.tensor([1, 2, 3])) is c


def test_donor_is_drawn_by_size():
    # sizes 2 and 4: P = 1/4 and 3/4
    c = torch.tensor([[1.0], [2.0], [0.0]])
    with seeded(0):
        took = [int(split_empty(c, torch.tensor([2, 4, 0]))[2] > 1.5) for _ in range(2000)]
    assert sum(took) / 2000 == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 2000))


def test_a_cluster_that_was_split_counts_half():
    # 9 images: the first empty cluster takes 4 of them, so P(second donor = first) = 4 / (4 + 3)
    c = torch.tensor([[100.0], [0.0], [0.0]])
    with seeded(0):
        again = [float(split_empty(c, torch.tensor([9, 0, 0]))[2]) < 100 for _ in range(2000)]
    assert sum(again) / 2000 == pytest.approx(4 / 7, abs=0.045)


def test_an_empty_cluster_is_split_in_the_first_iteration():
    with seeded(0):
        x = torch.randn(60, 3) + 5
        r = kmeans(x, 2, init=torch.stack([x.mean(0), torch.full((3,), 900.0)]), iterations=1)
    both = torch.stack([x.mean(0), torch.zeros(3)])
    assert torch.allclose(r.centroids, split_empty(both, torch.tensor([60, 0])), atol=1e-4)


def test_stops_when_assignments_stand_still(monkeypatch):
    calls = []
    assign = module._assign
    monkeypatch.setattr(module, "_assign", lambda *a: calls.append(1) or assign(*a))
    kmeans(torch.tensor([[0.0], [1.0], [9.0], [11.0]]), 2, init=torch.tensor([[0.0], [1.0]]))
    assert len(calls) == 3  # {0}{1,9,11}, {0,1}{9,11}, the same again


def test_no_cluster_stays_empty_when_rows_differ():
    with seeded(0):
        x = torch.randn(200, 3)
        start = torch.cat([torch.zeros(1, 3), torch.full((19, 3), 99.0)])
        r = kmeans(x, 20, init=start)
    assert torch.bincount(r.labels, minlength=20).min() > 0


def test_fewer_different_rows_than_clusters():
    x = torch.arange(5.0).repeat(20)[:, None]
    with seeded(0):
        r = kmeans(x, 50)
    assert r.centroids.isfinite().all()
    assert int((torch.bincount(r.labels, minlength=50) > 0).sum()) >= 5
    constant = kmeans(torch.ones(30, 2), 3)
    assert constant.inertia == pytest.approx(0, abs=1e-3) and constant.labels.max() < 3


@pytest.mark.parametrize(
    "change,words",
    [
        ({"n_clusters": 1}, "between 2 and the number of points, 10; got 1"),
        ({"n_clusters": 11}, "got 11"),
        ({"x": torch.full((10, 2), torch.nan)}, "finite"),
        ({"x": torch.ones(10)}, "shape"),
        ({"x": torch.ones(10, 2).long()}, "float"),
        ({"init": "best"}, "init must be"),
        ({"init": torch.ones(3, 5)}, r"\(3, 2\)"),
        ({"n_init": 0}, "n_init"),
    ],
)
def test_bad_input(change, words):
    arguments = {"x": torch.randn(10, 2), "n_clusters": 3} | change
    with pytest.raises(ValueError, match=words):
        kmeans(**arguments)


def same_up_to_sign(a, b, tolerance):
    sign = np.sign((a * b).sum(0))
    return np.allclose(a * sign, b, atol=tolerance)


@pytest.mark.parametrize("budget", [64, 2**22])
def test_whiten_equals_scikit_learn_in_blocks_and_whole(monkeypatch, budget):
    monkeypatch.setattr(module, "BUDGET", budget)
    with seeded(0):
        x = torch.randn(500, 12) @ torch.randn(12, 12) + 50
    y = PCA(8, whiten=True, svd_solver="full").fit_transform(x.double().numpy())
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    assert same_up_to_sign(whiten(x, 8).numpy(), y, 1e-4)


def test_whiten_holds_no_copy_of_the_rows(monkeypatch):
    # float64 copies of all rows would be three times 8 bytes x 4 million; a block is 1/64 of it
    monkeypatch.setattr(module, "BUDGET", 2**16)
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dtype == torch.float64:
                largest = max(largest, out.numel())
            return out

    x = torch.randn(2**14, 64)
    with Sizes():
        whiten(x, 8)
    assert largest <= 2**16


def test_numbers_whose_sum_overflows_are_finite():
    huge = torch.full((10, 2), 3e38)
    module.check_finite(huge, "x")
    huge[3, 1] = torch.inf
    with pytest.raises(ValueError, match="x must be finite"):
        module.check_finite(huge, "x")
    with pytest.raises(ValueError, match="x must be finite"):
        module.check_finite(torch.tensor([torch.inf, -torch.inf]), "x")


def test_whiten_dimensions():
    with seeded(0):
        x = torch.randn(100, 20)
        assert whiten(x, 256).shape == (100, 20)
        assert whiten(x[:15], 256).shape == (15, 14)  # centring costs one
        flat = torch.randn(100, 3) @ torch.randn(3, 20) + 7  # three directions, 17 null ones
        y = whiten(flat)
    assert y.shape == (100, 3)
    assert torch.allclose(y.norm(dim=1), torch.ones(100), atol=1e-5)
    dead = torch.cat([x, torch.full((100, 4), 3.0)], 1)
    assert whiten(dead).shape == (100, 20)


def test_whiten_wide_equals_tall():
    with seeded(0):
        x = torch.randn(30, 40)
    tall = whiten(torch.cat([x, x]), 10)[:30]  # doubling the rows changes no direction
    assert same_up_to_sign(whiten(x, 10).numpy(), tall.numpy(), 1e-4)


def test_whiten_refuses():
    with pytest.raises(ValueError, match="all equal"):
        whiten(torch.ones(10, 3) * 0.1)
    with pytest.raises(ValueError, match="finite"):
        whiten(torch.full((10, 3), torch.inf))
    with pytest.raises(ValueError, match="dim must be"):
        whiten(torch.randn(10, 3), 0)
    with pytest.raises(ValueError, match="shape"):
        whiten(torch.randn(10))
