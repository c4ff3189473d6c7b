"""k-reciprocal Jaccard distances against sets in a slow loop, and clusters by density."""

import math

import pytest
import torch
from torch.nn import functional as F

from dcl.cluster.reciprocal import density_clusters, jaccard_distance
from dcl.train import seeded


def slow(f, k1, k2):
    """Zhong et al. 2017, section 3, with Python sets."""
    n = len(f)
    cosine = (f @ f.T).double()
    ranked = cosine.argsort(1, descending=True).tolist()

    def reciprocal(i, k):
        return {j for j in ranked[i][: k + 1] if i in ranked[j][: k + 1]}

    weights = []
    for i in range(n):
        members = {*(own := reciprocal(i, k1))}
        for j in own:
            half = reciprocal(j, round(k1 / 2))
            if len(half & own) > 2 / 3 * len(half):
                members |= half
        total = sum(math.exp(2 * cosine[i, j] - 2) for j in members)
        weights.append([math.exp(2 * cosine[i, j] - 2) / total if j in members else 0.0
                        for j in range(n)])  # fmt: skip
    mean = [[sum(weights[j][c] for j in ranked[i][:k2]) / k2 for c in range(n)] for i in range(n)]
    distance = torch.zeros(n, n)
    for a in range(n):
        for b in range(n):
            low = sum(map(min, mean[a], mean[b]))
            distance[a, b] = 1 - low / sum(map(max, mean[a], mean[b]))
    return distance


@pytest.mark.parametrize("k1, k2", [(6, 3), (9, 1), (4, 2)])
def test_distances_are_the_slow_loop(k1, k2):
    with seeded(k1):
        group = F.one_hot(torch.arange(27) % 3, 8)  # so that neighbours are shared
        f = F.normalize(group + 0.5 * torch.randn(27, 8), dim=1)
    found = jaccard_distance(f, k1, k2)
    torch.testing.assert_close(found, slow(f, k1, k2), atol=1e-5, rtol=0)
    assert 0.05 < found.mean() < 0.95 and found.diagonal().max() < 1e-6
    torch.testing.assert_close(found, found.T)


def blobs():
    with seeded(1):
        means = F.normalize(torch.randn(3, 8), dim=1)
        f = torch.cat([means.repeat_interleave(20, 0) + 0.05 * torch.randn(60, 8),
                       torch.randn(4, 8)])  # fmt: skip
    return F.normalize(f, dim=1)


def test_density_finds_the_number_of_clusters_and_leaves_outliers_out():
    y = density_clusters(blobs(), eps=0.5, min_samples=4, k1=10, k2=3)
    assert y.dtype == torch.int64 and int(y.max()) == 2
    for k in range(3):
        inside = y[20 * k : 20 * k + 20]
        assert inside[inside >= 0].unique().numel() == 1 and (inside < 0).sum() <= 4
    assert (y[60:] == -1).sum() >= 3


def test_more_neighbours_than_rows_are_all_of_them():
    assert jaccard_distance(blobs()[:5], 30, 6).shape == (5, 5)


def test_no_cluster_at_all_is_an_error():
    with pytest.raises(ValueError, match="eps must be larger: no 9 of 8 rows are within 0.01"):
        density_clusters(torch.eye(8), eps=0.01, min_samples=9)
