"""Clusters that lines separate are predicted, random ones are not; a space counts once."""

import pytest
import torch

from dcl.measure.generalisation import generalisation_score
from dcl.train import seeded


def two_spaces(n=300):
    """Three clusters; the first two columns tell which, the other five are noise."""
    with seeded(0):
        clusters = torch.arange(n) % 3
        corners = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
        return torch.cat([corners[clusters] + torch.randn(n, 2), torch.randn(n, 5)], 1), clusters


def test_separable_clusters_score_high_and_shuffled_ones_by_chance():
    z, clusters = two_spaces()
    assert generalisation_score(z, clusters) > 0.98
    assert generalisation_score(z, clusters.roll(1)) > 0.98  # other numbers
    with seeded(1):
        assert generalisation_score(z, clusters[torch.randperm(300)], folds=5) < 0.42


def test_the_score_is_the_mean_over_spaces():
    z, clusters = two_spaces()
    told, noise = (generalisation_score(part, clusters) for part in (z[:, :2], z[:, 2:]))
    assert noise < 0.45 < told
    assert generalisation_score(z, clusters, spaces=(2, 5)) == pytest.approx((told + noise) / 2)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"features": torch.zeros(299, 7)}, r"features must be \(300, D\)"),
        ({"spaces": (2, 4)}, r"spaces must be parts of 7 columns; got \(2, 4\)"),
        ({"folds": 1}, "folds must be between 2 and the number of rows, 300; got 1"),
        ({"clusters": torch.zeros(300, dtype=torch.int64)}, "clusters must be two or more"),
    ],
)
def test_what_cannot_be_scored_is_refused(change, message):
    z, clusters = two_spaces()
    with pytest.raises(ValueError, match=message):
        generalisation_score(**{"features": z, "clusters": clusters} | change)
