"""Parts of learning from labels that may be wrong: sharpened guesses, mixed images, soft labels.

MixMatch (Berthelot et al. 2019, arXiv 1905.02249) and label smoothing, as RUC uses them (Park et
al. 2021). Chapter: ruc.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def sharpen(p: Tensor, temperature: float = 0.5) -> Tensor:
    """Rows (B,K) of probabilities to the power 1 / temperature, summing to 1 again; MixMatch eq. 7.

    Above 0: below 1 the largest grows, 1 changes nothing.
    """
    return (p.clamp(min=torch.finfo(p.dtype).tiny).log() / temperature).softmax(1)


def mix(x: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Images (B,C,H,W) and targets (B,K), each mixed with those of a random row; eq. 8 to 11.

    All keep the same share of themselves, s ~ Beta(alpha, alpha) or 1 - s, the larger; alpha 0:
    nothing is mixed.
    """
    if not alpha:
        return x, target
    drawn = float(torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha)).sample())
    share = max(drawn, 1 - drawn)
    partner = torch.randperm(len(x), device=x.device)
    return torch.lerp(x[partner], x, share), torch.lerp(target[partner], target, share)


def smoothed(label: Tensor, k: int, epsilon: float) -> Tensor:
    """Targets (B,k) of labels (B,): 1 - epsilon on the label, epsilon / (k - 1) on each other.

    epsilon is the probability of all others: `label_smoothing` of torch is epsilon k / (k - 1).
    """
    off = epsilon / (k - 1)
    return F.one_hot(label, k) * (1 - epsilon - off) + off


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy (B,) of logits (B,K) to probabilities (B,K)."""
    return -(target * logits.log_softmax(1)).sum(1)


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the values (B,) where the mask (B,) is true; 0, with a graph, where it never is.

    No indexing by the mask, which would make a GPU wait.
    """
    return (values * mask).sum() / mask.sum().clamp(min=1)
