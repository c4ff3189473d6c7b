"""Equal weight for clusters of unequal size: by sampling images, or by weighting them."""

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
