"""Labels that a model gives itself: by confidence, by prototypes, by agreement of neighbours."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dcl.cluster.neighbors import nearest


def confident(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The most probable class (B,) of logits (B,K), and whether its probability is above threshold.

    No gradient. Source: Sohn et al. 2020 (FixMatch). Chapters: scan, spice.
    """
    confidence, label = logits.detach().softmax(1).max(1)  # (B,) (B,)
    return label, confidence > threshold


def fixmatch_loss(weak: Tensor, strong: Tensor, threshold: float = 0.95) -> tuple[Tensor, Tensor]:
    """Cross-entropy of strong views to the confident labels of weak ones, and who is confident.

    `weak`, `strong` (B,K): logits of the same images. Returns a scalar, divided by B, so that few
    confident images weigh little and none give 0 with a graph, and a mask (B,).
    Source: Sohn et al. 2020 (FixMatch). Chapter: spice.
    """
    label, mask = confident(weak, threshold)
    return (mask * F.cross_entropy(strong, label, reduction="none")).mean(), mask


def prototype_labels(z: Tensor, p: Tensor, share: float = 0.5) -> Tensor:
    """Which clusters each image is labelled with, bool (M,K): several, one or none.

    z (M,d): embeddings; p (M,K): probabilities. The `share` of M/K images with the largest
    probability of a cluster make its prototype, their mean; the M/K images with the largest inner
    product with it are labelled. Rounded down, at least one; equal values go by row.
    Source: Niu et al. 2022 (SPICE). Chapter: spice.
    """
    each = max(1, len(p) // p.shape[1])
    surest = p.argsort(dim=0, descending=True, stable=True)[: max(1, int(share * each))]  # (k,K)
    scores = z @ z[surest].mean(0).T  # (M,K)
    near = scores.argsort(dim=0, descending=True, stable=True)[:each]
    return torch.zeros_like(p, dtype=torch.bool).scatter_(0, near, True)


def reliable(z: Tensor, p: Tensor, k: int, agree: float = 0.99, sure: float = 0.99) -> Tensor:
    """The most probable cluster (N,) of images whose neighbours agree, -1 for the others.

    z (N,d): embeddings; p (N,K): probabilities. Of the k nearest images by cosine, itself included,
    at least the share `agree` have the same cluster, and its probability is above `sure`.
    Source: Niu et al. 2022 (SPICE). Chapter: spice.
    """
    confidence, label = p.max(1)
    same = (label[nearest(z, z, k)] == label[:, None]).sum(1)
    return torch.where((same >= agree * k) & (confidence > sure), label, -1)


def even(labels: Tensor) -> Tensor:
    """Labels (N,) int64 with as many of each class as the smallest has, at random: the others -1.

    -1 is no class, and a class without images does not count. Chapter: spice.
    """
    kept, sizes = labels.clone(), labels[labels >= 0].bincount()
    for c in sizes.nonzero()[:, 0].tolist():
        rows = (labels == c).nonzero()[:, 0].cpu()
        kept[rows[torch.randperm(len(rows))[int(sizes[sizes > 0].min()) :]]] = -1
    return kept
