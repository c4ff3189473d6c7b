"""Two clusterings of the same images: which old cluster became which new one, and its memory."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dcl.cluster.bank import Bank
from dcl.runtime.dist import all_gather_rows, rank, world_size


def consensus(before: Tensor, now: Tensor, k_before: int, k_now: int) -> Tensor:
    """Overlap of each old cluster with each new one, in rows that sum to 1: (K',K) float32.

    before, now (N,) int64: the clusters of the same N images, -1 for none. Intersection over union;
    the row of a cluster that shares no image with any new one is 0.
    Source: Zhang et al. 2021 (RLCC). Chapter: rlcc.
    """
    both = (before >= 0) & (now >= 0)
    pairs = before[both] * k_now + now[both]
    shared = pairs.bincount(minlength=k_before * k_now).view(k_before, k_now)
    old, new = (y[y >= 0].bincount(minlength=k) for y, k in ((before, k_before), (now, k_now)))
    iou = shared / (old[:, None] + new - shared).clamp(min=1)
    return iou / iou.sum(1, keepdim=True).clamp(min=1e-12)


def centres(f: Tensor, labels: Tensor, k: int) -> Tensor:
    """The mean of each cluster's rows of f (N,D), scaled to length 1: (k,D); labels -1: in none."""
    inside = labels >= 0
    total = f.new_zeros(k, f.shape[1]).index_add_(0, labels[inside], f[inside])
    return F.normalize(total, dim=1)


def former(f: Tensor, old: Tensor, before: Tensor, sharpness: float, share: float) -> Tensor:
    """In which old cluster images are: (B,K'), rows that sum to 1.

    f (B,D) and centres old (K',D) of length 1: softmax of `sharpness` times the cosine; mixed, to
    `share`, with the cluster before (B,) that it was in, if it was in one (-1: in none).
    """
    p = (sharpness * f @ old.T).softmax(1)
    hard = torch.zeros_like(p).scatter_(1, before[:, None].clamp(min=0), 1)
    return torch.where(before[:, None] >= 0, torch.lerp(p, hard, share), p)


def refined(p: Tensor, matrix: Tensor, labels: Tensor) -> Tensor:
    """Rows p (B,K') over old clusters, carried over by matrix (K',K) to new ones: (B,K), sum 1.

    A row that lies in vanished clusters only is its new label (B,), one-hot.
    """
    s = p @ matrix
    total = s.sum(1, keepdim=True)
    hard = torch.zeros_like(s).scatter_(1, labels[:, None].clamp(min=0), 1)
    return torch.where(total > 1e-6, s / total.clamp(min=1e-6), hard)


class Memory(Bank):
    """A row for each cluster; the images of a batch move theirs one after the other.

    In no checkpoint, since it is made anew with the clusters.
    """

    def __init__(self, k: int, dim: int, keep: float = 0.2):
        super().__init__(k, dim, keep)
        self.register_buffer("rows", self.rows, persistent=False)

    @torch.no_grad()
    def update(self, i: Tensor, z: Tensor) -> None:
        """Move the rows i (b,), which may repeat, towards z (b,D), in the order of the batch."""
        here = torch.arange(len(i), device=i.device) * world_size() + rank()  # place in the batch
        order = all_gather_rows(here).argsort()
        i, z = all_gather_rows(i)[order], all_gather_rows(z.detach().float())[order]
        for k in range(len(i)):  # each row is scaled to length 1 before its next image comes
            row = torch.lerp(z[k], self.rows.index_select(0, i[k : k + 1]), self.keep)
            self.rows.index_copy_(0, i[k : k + 1], F.normalize(row, dim=1))
