"""Centroids of embeddings: found, kept in the state, and how near rows are to them."""

import pytest
import torch
from torch.nn import functional as F

from dcl.cluster import centroids
from dcl.cluster.centroids import Centroids, simplex
from dcl.train import seeded


@pytest.mark.parametrize("spherical", [False, True])
def test_fitted_saved_and_near_by_hand(spherical):
    with seeded(0):
        middle = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-4.0, -4.0]])
        z = (middle[:, None] + 0.1 * torch.randn(3, 20, 2)).flatten(0, 1)
        clusters = Centroids(3, 2, spherical=spherical)
        with pytest.raises(ValueError, match="clusters must be fitted first"):
            clusters(z)
        clusters.fit(z)
    labels = clusters(z).argmax(1).view(3, 20)
    assert (labels == labels[:, :1]).all() and labels[:, 0].unique().numel() == 3
    means = (F.normalize(z, dim=1) if spherical else z).view(3, 20, 2).mean(1)
    means = F.normalize(means, dim=1) if spherical else means
    torch.testing.assert_close(clusters.centroids[labels[:, 0]], means)
    copy = Centroids(3, 2, spherical=spherical)
    copy.load_state_dict(clusters.state_dict())
    by_hand = [
        [float(x @ c) if spherical else -float((x - c).square().sum()) for c in copy.centroids]
        for x in z[:4]
    ]
    torch.testing.assert_close(copy(z[:4]), torch.tensor(by_hand), atol=1e-5, rtol=1e-4)


def test_the_best_of_so_many_starts(monkeypatch):
    asked = []
    kmeans = centroids.kmeans

    def counted(z, k, **how):
        asked.append(how["n_init"])
        return kmeans(z, k, **how)

    monkeypatch.setattr(centroids, "kmeans", counted)
    Centroids(2, 3).fit(torch.eye(3))
    Centroids(2, 3, starts=7).fit(torch.eye(3))
    assert asked == [10, 7]


@pytest.mark.parametrize("k, least, dim", [(2, 1, 1), (3, 2, 2), (10, 4, 9), (10, 32, 32)])
def test_corners_of_a_simplex_are_as_far_apart_as_can_be(k, least, dim):
    w = simplex(k, least)
    assert w.shape == (k, dim) and w.dtype == torch.float32
    wanted = torch.full((k, k), -1 / (k - 1)).fill_diagonal_(1)
    torch.testing.assert_close(w @ w.T, wanted, atol=1e-6, rtol=0)
