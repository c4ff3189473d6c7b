"""Contrastive losses: tell the other view of the same image from everything else."""

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(z1: Tensor, z2: Tensor, temperature: float = 0.1, symmetric: bool = True) -> Tensor:
    """Cross-entropy of finding each image's other view among all others (NT-Xent), a scalar.

    `z1`, `z2` (B,D) float: embeddings of two views, row k of both from one image; they are
    normalised here. `symmetric=False` takes only the rows of `z1` as anchors.
    Source: Chen et al. 2020, eq. 1 and Algorithm 1. Chapter: scan.
    """
    z = F.normalize(torch.cat([z1, z2]), dim=1)  # (2B,D)
    logits = z @ z.T / temperature  # (2B,2B)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = logits.masked_fill(own, -torch.inf)  # nothing is its own partner
    partner = torch.arange(len(z), device=z.device).roll(len(z1))
    losses = F.cross_entropy(logits, partner, reduction="none")  # (2B,)
    return losses.mean() if symmetric else losses[: len(z1)].mean()


def supcon(z: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of finding the rows with one's own label among all others, a scalar.

    `z` (M,D) float is normalised here, `labels` (M,) int64. For each row the mean over the others
    of its label of -log softmax; then the mean over rows that have such others (0 without any).
    With two rows for each label it is `nt_xent`.
    Source: Khosla et al. 2020, with the mean outside the logarithm. Chapter: jigclu.
    """
    z = F.normalize(z, dim=1)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_p = (z @ z.T / temperature).masked_fill(own, -torch.inf).log_softmax(1)  # (M,M)
    same = (labels[:, None] == labels) & ~own
    count = same.sum(1)
    losses = -log_p.masked_fill(~same, 0).sum(1) / count.clamp(min=1)  # (M,)
    return losses.sum() / (count > 0).sum().clamp(min=1)


def class_contrast(log_x: Tensor, log_y: Tensor) -> Tensor:
    """Cross-entropy of finding each column of X among the columns of Y by its cosine, a scalar.

    log_x, log_y (B,K): logarithms of probabilities; column k of both is cluster k. At least
    ln(e + K - 1) - 1, if columns are orthogonal; ln K if all are alike.
    Source: Dang et al. 2021 (NNM), the class contrast. Chapter: nnm.
    """
    x, y = (F.normalize(log_p.exp(), dim=0) for log_p in (log_x, log_y))
    return F.cross_entropy(x.T @ y, torch.arange(x.shape[1], device=x.device))


def key_logits(z: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Similarity / temperature (...,B,1+r) of rows z to candidates: their own key comes first.

    z, keys (...,B,D) and negatives (...,r,D) float: row k of the first two is from one image.
    Chapters: pcl and mice.
    """
    own = (z * keys).sum(-1, keepdim=True)  # (...,B,1)
    return torch.cat([own, z @ negatives.mT], -1) / temperature


def info_nce(z: Tensor, keys: Tensor, negatives: Tensor, temperature: float = 0.2) -> Tensor:
    """Cross-entropy of finding each row's key among itself and the negatives (InfoNCE), a scalar.

    z, keys (B,D) and negatives (r,D) float, of length 1: row k of both is from one image. Without
    negatives it is 0. Source: He et al. 2020 (MoCo), eq. 1. Chapter: pcl.
    """
    logits = key_logits(z, keys, negatives, temperature)
    return F.cross_entropy(logits, logits.new_zeros(len(z), dtype=torch.int64))


def spreading(z1: Tensor, z2: Tensor, temperature: float = 0.1) -> Tensor:
    """Find each row's other view among all rows, and be sure that it is none of the rest, a scalar.

    `z1`, `z2` (B,D) float, of length 1: row k of both from one image. With p_ij, for row i of all
    2B, the softmax of the products with all j but i: the mean of -ln p_ij for the other view j,
    minus the sum of ln(1 - p_ij) over the others. What is looked for, j, is detached.
    If all rows are alike: ln(2B - 1) - (2B - 2) ln(1 - 1 / (2B - 1)), about ln 2B + 1.
    Source: Han et al. 2020 (TSUC). Chapter: tsuc.
    """
    z = torch.cat([z1, z2])  # (2B,D)
    logits = z @ z.detach().T / temperature
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_p = logits.masked_fill(own, -torch.inf).log_softmax(1)
    partner = torch.arange(len(z), device=z.device).roll(len(z1))[:, None]
    rest = log_p.exp().scatter(1, partner, 0).clamp(max=1 - 1e-6)
    return -(log_p.gather(1, partner)[:, 0] + torch.log1p(-rest).sum(1)).mean()
