"""Are two images in the same cluster? The pairwise cross-entropy and labels of LSD-C and DAC."""

import torch
from torch import Tensor
from torch.nn import functional as F


def pair_loss(
    a: Tensor, b: Tensor, target: Tensor, weights: Tensor | None = None, eps: float = 1e-7
) -> Tensor:
    r"""Binary cross-entropy of "the same cluster" over all pairs of rows, a scalar.

    `a` (A,D), `b` (B,D): the predictions are their dot products :math:`P_{ij} = a_i \cdot b_j`.
    For rows of probabilities (LSD-C) that is the probability that two independent draws agree, for
    non-negative unit vectors (DAC) the cosine. `target` (A,B) in [0,1]; `weights` (A,B), by default
    all 1: weights with a mean of 1 make a weighted mean, a weight of 0 leaves a pair out.

    Sources: LSD-C section 3.1; DAC, its objective. Chapters: lsdc, dac.
    """
    same = (a @ b.T).clamp(0, 1)  # rounding may exceed 1, and the log give NaN
    loss = -(target * (same + eps).log() + (1 - target) * (1 - same + eps).log())
    return (loss if weights is None else weights * loss).mean()


def cosine_labels(f: Tensor, threshold: float = 0.9) -> Tensor:
    """1 where the cosine of two rows of f (B,D) is at least `threshold`: (B,B) of 0 and 1.

    Source: LSD-C section 3.1. Chapter: lsdc.
    """
    f = F.normalize(f, dim=1)
    return (f @ f.T >= threshold).float().fill_diagonal_(1)


def l2_labels(f: Tensor, threshold: float) -> Tensor:
    """1 where the distance of two rows of f (B,D) is below `threshold`: (B,B) of 0 and 1.

    Source: LSD-C section 3.1. Chapter: lsdc.
    """
    return (torch.cdist(f, f) < threshold).float().fill_diagonal_(1)


def sne_labels(f: Tensor, threshold: float = 0.01, temperature: float = 1.0) -> Tensor:
    """1 where the SNE affinity of two rows of f (B,D) is above `threshold`: (B,B) of 0 and 1.

    The affinity is the mean of "j is i's neighbour" and "i is j's", each a softmax of minus the
    squared distance over T squared. Source: LSD-C section 3.1. Chapter: lsdc.
    """
    logits = -(torch.cdist(f, f) ** 2) / temperature**2
    logits.fill_diagonal_(-torch.inf)  # no row is its own neighbour
    return ((logits.softmax(1) + logits.softmax(0)) / 2 > threshold).float().fill_diagonal_(1)


def knn_labels(f: Tensor, k: int = 20) -> Tensor:
    """1 where row i of f (B,D) is near row j *or* j is near i: (B,B) of 0 and 1.

    Near: closer than the k-th smallest distance, counting the row itself (0), so k - 2 others.
    Source: LSD-C section 3.1. Chapter: lsdc.
    """
    distance = torch.cdist(f, f).fill_diagonal_(0)
    near = distance < distance.kthvalue(k, dim=1).values[:, None]
    return (near | near.T).float().fill_diagonal_(1)
