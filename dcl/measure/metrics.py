"""Is the clustering good? ACC, purity, NMI, ARI. Is the representation good? kNN, linear probe.

Cluster metrics take two equally long sequences of integers (tensor, array or list), class labels
first. They do not depend on how the clusters are numbered. Chapter: metrics.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Ids = Tensor | np.ndarray | Sequence[int]


def _ids(values: Ids, name: str) -> np.ndarray:
    a = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if a.ndim != 1 or a.size == 0:
        raise ValueError(f"{name} must be a non-empty list of integers; got shape {a.shape}")
    if a.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers; got {a.dtype}")
    return a.astype(np.int64)


def _pair(labels: Ids, clusters: Ids) -> tuple[np.ndarray, np.ndarray]:
    a, b = _ids(labels, "labels"), _ids(clusters, "clusters")
    if len(a) != len(b):
        raise ValueError(f"labels and clusters must be equally long; got {len(a)} and {len(b)}")
    return a, b


def _counts(labels: Ids, clusters: Ids) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # (classes, clusters) table of counts over the ids that occur, and these ids
    a, b = _pair(labels, clusters)
    classes, row = np.unique(a, return_inverse=True)
    groups, column = np.unique(b, return_inverse=True)
    table = np.bincount(row * len(groups) + column, minlength=len(classes) * len(groups))
    return table.reshape(len(classes), len(groups)), classes, groups


def match(labels: Ids, clusters: Ids, *, many_to_one: bool = False) -> dict[int, int]:
    """Which class each cluster stands for: {cluster: class}.

    One-to-one (Hungarian) by default: the matching that gets most images right; surplus clusters
    are missing from the mapping. `many_to_one`: every cluster is matched to its most frequent
    class (ties: the lowest class).
    Raises TypeError, ValueError as `accuracy`. Kuhn 1955; chapter metrics.
    """
    from scipy.optimize import linear_sum_assignment

    table, classes, groups = _counts(labels, clusters)
    if many_to_one:
        rows, columns = table.argmax(0), np.arange(len(groups))
    else:
        rows, columns = linear_sum_assignment(table, maximize=True)
    return {int(groups[c]): int(classes[r]) for r, c in zip(rows, columns, strict=True)}


def accuracy(labels: Ids, clusters: Ids) -> float:
    """ACC in [0,1]: fraction of images correct under the best one-to-one matching to classes.

    The numbers of classes and clusters may differ. Images of an unmatched cluster or class all
    count as wrong.
    Raises ValueError: different lengths, empty; TypeError: not integers. Chapter metrics.
    """
    from scipy.optimize import linear_sum_assignment

    table, _, _ = _counts(labels, clusters)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / table.sum())


def purity(labels: Ids, clusters: Ids) -> float:
    """Fraction of images correct when each cluster takes its most frequent class (many-to-one).

    In [0,1], never below `accuracy`; 1 when every image is a cluster of its own: compare it only
    at equal numbers of clusters. Raises as `accuracy`. Chapter metrics.
    """
    table, _, _ = _counts(labels, clusters)
    return float(table.max(0).sum() / table.sum())


def nmi(labels: Ids, clusters: Ids) -> float:
    """Normalised mutual information in [0,1]: I / ((H(labels) + H(clusters)) / 2), natural log.

    Papers since 2018 use this arithmetic mean. 1 if both have a single group. Not adjusted for
    chance: grows with the number of clusters. Raises as `accuracy`.
    Strehl & Ghosh 2002; chapter metrics.
    """
    table, _, _ = _counts(labels, clusters)
    joint = table / table.sum()
    rows, columns = joint.sum(1), joint.sum(0)

    def entropy(p: np.ndarray) -> float:
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    total = entropy(rows) + entropy(columns)
    if total == 0:
        return 1.0
    mutual = total - entropy(joint.ravel())
    return float(min(max(2 * mutual / total, 0.0), 1.0))


def ari(labels: Ids, clusters: Ids) -> float:
    """Adjusted Rand index: agreement on pairs of images, 0 expected by chance, 1 for equal.

    Can be slightly negative (never below -1/2). 1 if both have one group, or both only singletons.
    Raises as `accuracy`. Hubert & Arabie 1985; chapter metrics.
    """
    table, _, _ = _counts(labels, clusters)

    def pairs(n: np.ndarray) -> float:
        n = n.astype(np.float64)
        return float((n * (n - 1) / 2).sum())

    both, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / max(pairs(table.sum(keepdims=True)), 1.0)
    largest = (rows + columns) / 2
    return 1.0 if largest == expected else float((both - expected) / (largest - expected))


def scores(labels: Ids, clusters: Ids) -> dict[str, float]:
    """ACC, NMI and ARI under these names; raises as `accuracy`. Chapter metrics."""
    return {
        "ACC": accuracy(labels, clusters),
        "NMI": nmi(labels, clusters),
        "ARI": ari(labels, clusters),
    }


def confusion(labels: Ids, clusters: Ids, *, ordered: bool = False) -> Tensor:
    """Counts (classes, clusters) int64: row = class 0..max, column = cluster 0..max.

    `ordered`: the cluster matched to class c is in column c, and the unmatched ones follow; a class
    without a cluster gets an empty column.
    Raises as `accuracy`, and ValueError for negative ids. Chapter metrics.
    """
    a, b = _pair(labels, clusters)
    if min(a.min(), b.min()) < 0:
        raise ValueError("labels and clusters must not be negative")
    table = np.zeros((a.max() + 1, b.max() + 1), dtype=np.int64)
    np.add.at(table, (a, b), 1)
    if not ordered:
        return torch.from_numpy(table)
    at = {label: cluster for cluster, label in match(a, b).items()}
    zero = np.zeros(len(table), dtype=np.int64)
    columns = [table[:, at[c]] if c in at else zero for c in range(len(table))]
    columns += [table[:, g] for g in np.unique(b) if g not in at.values()]
    return torch.from_numpy(np.stack(columns, 1))


def _features(z: Any, y: Ids, name: str) -> tuple[Tensor, Tensor]:
    z = torch.as_tensor(z).detach().float()
    labels = torch.from_numpy(_ids(y, f"y_{name}")).to(z.device)
    if z.ndim != 2 or len(z) != len(labels):
        raise ValueError(
            f"z_{name} must be (images, dimensions) with one label each; got {tuple(z.shape)} "
            f"and {len(labels)} labels"
        )
    if not torch.isfinite(z).all():
        raise ValueError(f"z_{name} must be finite; got NaN or infinity")
    return z, labels


@torch.no_grad()
def knn_accuracy(
    z_train: Any,
    y_train: Ids,
    z_test: Any = None,
    y_test: Ids | None = None,
    k: int = 20,
    temperature: float = 0.1,
) -> float:
    """Fraction of test images classified correctly by their k nearest training images.

    z (N,D) float features, y (N,) class ids. Neighbours by cosine, each votes for its class with
    weight exp(cosine / temperature). Without a test set, every image is tested against all others
    (leave one out). k is at most the number of images.
    Raises ValueError, TypeError: shapes, NaN, k < 1, not integers. Wu et al. 2018, section 3.4;
    chapter metrics.
    """
    train, labels = _features(z_train, y_train, "train")
    alone = z_test is None or y_test is None
    test, truth = (train, labels) if alone else _features(z_test, y_test, "test")  # type: ignore[arg-type]
    if k < 1 or (alone and len(train) < 2):
        raise ValueError(f"k must be 1 or more and there must be a neighbour; got k={k}")
    k = min(k, len(train) - alone)
    a, b = F.normalize(test.to(train.device), dim=1), F.normalize(train, dim=1)
    n_classes, right = int(labels.max()) + 1, 0
    size = max(1, 2**24 // len(train))
    for start in range(0, len(a), size):
        cosine = a[start : start + size] @ b.T  # (b,N)
        if alone:
            row = torch.arange(len(cosine), device=a.device)
            cosine[row, row + start] = -torch.inf
        value, index = cosine.topk(k, dim=1)  # (b,k)
        # relative to the nearest: the same vote, and exp cannot overflow at a small temperature
        weight = ((value - value[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(cosine), n_classes).scatter_add_(1, labels[index], weight)
        right += int((votes.argmax(1) == truth[start : start + size].to(a.device)).sum())
    return right / len(a)


def linear_probe(
    z_train: Any, y_train: Ids, z_test: Any, y_test: Ids, *, iterations: int = 200
) -> float:
    """Accuracy on the test set of a linear classifier trained on frozen features.

    z (N,D) float, y (N,) class ids. Multinomial logistic regression on features standardised by
    the training set, penalty ``W.square().sum() / 2N`` (C = 1 in scikit-learn), full-batch L-BFGS
    from zero, so deterministic. Runs on z_train's device.
    Raises ValueError, TypeError: shapes, NaN, fewer than two classes. Alain & Bengio 2016;
    chapter metrics.
    """
    train, y = _features(z_train, y_train, "train")
    test, truth = _features(z_test, y_test, "test")
    classes, target = y.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError("y_train must hold at least two classes; got one")
    mean, std = train.mean(0), train.std(0, correction=0)
    std = torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std))
    train, test = (train - mean) / std, (test.to(train) - mean) / std
    with torch.enable_grad(), torch.autocast(train.device.type, enabled=False):
        w = train.new_zeros(train.shape[1], len(classes), requires_grad=True)
        b = train.new_zeros(len(classes), requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [w, b], max_iter=iterations, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(train @ w + b, target) + (w * w).sum() / (2 * len(train))
            loss.backward()
            return loss

        optimizer.step(closure)
    with torch.no_grad():
        predicted = classes[(test @ w + b).argmax(1)]
    return float((predicted == truth.to(predicted.device)).float().mean())
