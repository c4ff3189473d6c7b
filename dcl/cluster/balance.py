"""Clusters of equal weight: by sampling images, by weighting them, or by an entropy."""

import math

import torch
from torch import Tensor


def uniform_order(labels: Tensor) -> Tensor:
    """Rows (N,) in which each non-empty cluster of labels (N,) has the same expected share.

    From each cluster N // clusters + 1 rows, with replacement if it has no more; shuffled and cut
    to N. Rows of cluster -1, outliers, are left out.
    Source: DeepCluster section 3.3, "trivial parametrization". Chapter: deepcluster.
    """
    inside = labels[labels >= 0]
    sizes = [size for size in inside.bincount().tolist() if size]
    each = len(labels) // len(sizes) + 1
    rows = []
    for members in labels.argsort(stable=True)[-len(inside) :].cpu().split(sizes):
        few = len(members) <= each
        draw = torch.randint(len(members), (each,)) if few else torch.randperm(len(members))
        rows.append(members[draw[:each]])
    drawn = torch.cat(rows)
    return drawn[torch.randperm(len(drawn))[: len(labels)]]


def cluster_weights(labels: Tensor) -> Tensor:
    """N / (non-empty clusters * size of the image's cluster): labels (N,) -> (N,), mean 1.

    In expectation the same as `uniform_order`. Chapter: deepcluster.
    """
    # the clusters' sizes, without `bincount`, which would make the GPU wait in every step
    sizes = torch.zeros_like(labels).scatter_add_(0, labels, torch.ones_like(labels))
    return len(labels) / ((sizes > 0).sum() * sizes[labels])


# eq. 2 of SCAN (Van Gansbeke et al. 2020); of CC, too. Finite, as is its gradient, for a cluster
# without mass. Chapters: scan, cc.
def mean_entropy(log_p: Tensor) -> Tensor:
    """Entropy, 0 to ln K, of the mean of B predictions, from log-probabilities (B,K): eq. 2."""
    log_mean = torch.logsumexp(log_p, dim=0) - math.log(len(log_p))  # (K,)
    return -(log_mean.exp() * log_mean).sum()
