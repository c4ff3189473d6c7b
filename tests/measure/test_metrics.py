import itertools

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from dcl.measure import metrics


def draw(seed, n=60, classes=4, clusters=4):
    rng = np.random.default_rng(seed)
    return rng.integers(classes, size=n), rng.integers(clusters, size=n)


def brute_accuracy(labels, clusters):
    # every injective naming of the smaller side by the larger
    classes, groups = sorted(set(labels)), sorted(set(clusters))
    size = max(len(classes), len(groups))
    names = classes + [None] * (size - len(classes))
    best = 0
    for chosen in itertools.permutations(names, len(groups)):
        name = dict(zip(groups, chosen, strict=True))
        best = max(best, sum(name[c] == y for y, c in zip(labels, clusters, strict=True)))
    return best / len(labels)


def test_by_hand():
    labels, clusters = [0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 2]
    # cluster 0 holds (0,1,1), 1 holds (0,0), 2 holds (1): 0->1 and 1->0 make 4 right, 2 is left out
    assert metrics.accuracy(labels, clusters) == pytest.approx(4 / 6)
    assert metrics.match(labels, clusters) == {0: 1, 1: 0}
    assert metrics.match(labels, clusters, many_to_one=True) == {0: 1, 1: 0, 2: 1}
    assert metrics.purity(labels, clusters) == pytest.approx(5 / 6)
    assert metrics.confusion(labels, clusters).tolist() == [[1, 2, 0], [2, 0, 1]]
    assert metrics.confusion(labels, clusters, ordered=True).tolist() == [[2, 1, 0], [0, 2, 1]]
    # same pairs: labels 6, clusters 3 + 1 = 4, both 1 + 1 = 2, of 15
    assert metrics.ari(labels, clusters) == pytest.approx((2 - 6 * 4 / 15) / (5 - 6 * 4 / 15))


@pytest.mark.parametrize("classes,clusters", [(4, 4), (3, 6), (6, 3), (2, 7), (1, 3), (3, 1)])
def test_accuracy_is_the_best_naming(classes, clusters):
    for seed in range(5):
        y, c = draw(seed, 30, classes, clusters)
        assert metrics.accuracy(y, c) == pytest.approx(brute_accuracy(y.tolist(), c.tolist()))


@pytest.mark.parametrize("classes,clusters", [(4, 4), (3, 9), (9, 3), (1, 5), (5, 1), (1, 1)])
def test_nmi_and_ari_equal_scikit_learn(classes, clusters):
    for seed in range(5):
        y, c = draw(seed, 50, classes, clusters)
        assert metrics.nmi(y, c) == pytest.approx(oracle.normalized_mutual_info_score(y, c))
        assert metrics.ari(y, c) == pytest.approx(oracle.adjusted_rand_score(y, c))


def test_all_alone():
    alone = list(range(8))
    assert metrics.ari(alone, alone) == metrics.nmi(alone, alone) == 1.0
    assert metrics.purity([0, 0, 1, 1, 2, 2, 3, 3], alone) == 1.0
    assert metrics.ari([0] * 8, alone) == oracle.adjusted_rand_score([0] * 8, alone) == 0.0
    assert metrics.scores([7], [3]) == {"ACC": 1.0, "NMI": 1.0, "ARI": 1.0}


def test_kinds_of_input():
    y, c = draw(0)
    expected = metrics.scores(y, c)
    assert metrics.scores(y.tolist(), tuple(c.tolist())) == expected
    assert metrics.scores(torch.tensor(y), torch.tensor(c, dtype=torch.int32)) == expected


def test_confusion_ordered_has_a_column_for_every_class():
    with pytest.raises(ValueError, match="negative"):
        metrics.confusion([0, 1], [0, -1])
    table = metrics.confusion([0, 1, 2, 2], [5, 5, 1, 1], ordered=True)
    assert table[:, 2].tolist() == [0, 0, 2]
    assert table.sum() == 4
    y, c = draw(3, 200, 4, 7)
    table = metrics.confusion(y, c, ordered=True)
    assert table.shape == (4, 7)
    assert int(table.diagonal().sum()) == round(metrics.accuracy(y, c) * 200)
    assert (metrics.confusion(y, c).sum(1) == table.sum(1)).all()


@pytest.mark.parametrize(
    "labels,clusters,error,words",
    [
        ([0, 1], [0, 1, 1], ValueError, "2 and 3"),
        ([], [], ValueError, "non-empty"),
        ([0.0, 1.0], [0, 1], TypeError, "labels must be integers"),
        ([0, 1], torch.tensor([0.5, 1.0]), TypeError, "clusters must be integers"),
        ([[0, 1]], [0, 1], ValueError, r"\(1, 2\)"),
    ],
)
def test_bad_input(labels, clusters, error, words):
    fs = (metrics.accuracy, metrics.purity, metrics.nmi, metrics.ari, metrics.match)
    for f in (*fs, metrics.confusion, metrics.scores):
        with pytest.raises(error, match=words):
            f(labels, clusters)


@pytest.mark.parametrize("k,t", [(1, 0.1), (5, 0.1), (30, 100.0)])
def test_knn_equals_scikit_learn(k, t):
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=90)
    z = (rng.normal(size=(4, 6))[y] + rng.normal(size=(90, 6))).astype(np.float32)
    vote = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / t))
    there = vote.fit(z[:60], y[:60]).score(z[60:], y[60:])
    assert metrics.knn_accuracy(z[:60], y[:60], z[60:], y[60:], k, t) == pytest.approx(there)
    alone = cross_val_score(vote, z, y, cv=LeaveOneOut()).mean()  # without the row itself
    assert metrics.knn_accuracy(z, y, k=k, temperature=t) == pytest.approx(alone)


def test_knn_weights_decide():
    # two far neighbours of class 1 outvote one near neighbour of class 0 only when T is large
    train = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    test = torch.tensor([[1.0, 0.0]])
    assert metrics.knn_accuracy(train, [0, 1, 1], test, [0], k=3, temperature=0.1) == 1
    assert metrics.knn_accuracy(train, [0, 1, 1], test, [0], k=3, temperature=10.0) == 0
    assert metrics.knn_accuracy(train, [0, 1, 1], test, [0], k=3, temperature=1e-3) == 1
    # a label that training never saw is wrong, not an error
    assert metrics.knn_accuracy(train, [0, 1, 1], test, [5], k=3) == 0


def test_linear_probe_equals_scikit_learn():
    rng = np.random.default_rng(0)
    y = rng.integers(5, size=400) * 2  # ids need not be 0..C-1
    z = (rng.normal(size=(10, 8))[y] + 1.2 * rng.normal(size=(400, 8))).astype(np.float32)
    z = z * np.array([100, 1, 0.01, 1, 1, 1, 1, 0], dtype=np.float32) + 5  # scales; one dead
    a, b = slice(0, 200), slice(200, 400)
    scaler = StandardScaler().fit(z[a])
    model = LogisticRegression(max_iter=2000, tol=1e-6).fit(scaler.transform(z[a]), y[a])
    expected = model.score(scaler.transform(z[b]), y[b])
    got = metrics.linear_probe(torch.tensor(z[a]), y[a], z[b], y[b])
    assert got == pytest.approx(expected, abs=1 / 200 + 1e-6)
    with torch.no_grad():
        assert metrics.linear_probe(z[a], y[a], z[b], y[b]) == got


def test_probes_refuse_bad_input():
    z, y = torch.randn(6, 2), [0, 1, 0, 1, 0, 1]
    for f in (metrics.knn_accuracy, metrics.linear_probe):
        with pytest.raises(ValueError, match="one label each"):
            f(z, y[:5], z, y)
        with pytest.raises(ValueError, match="z_test must be finite"):
            f(z, y, z / 0, y)
    with pytest.raises(ValueError, match="two classes"):
        metrics.linear_probe(z, [1] * 6, z, y)
    with pytest.raises(ValueError, match="k=0"):
        metrics.knn_accuracy(z, y, k=0)
