"""A memory bank: for each image of the training set, a moving average of its embeddings."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.cluster.neighbors import BUDGET
from dcl.runtime.dist import all_gather_rows, shard


class Bank(nn.Module):
    """Rows (N,D) of length 1, one for each image, random at first; every process holds all of them.

    Not trained; kept in checkpoints, and in published weights unless its owner lists "bank.rows"
    as `transient`. `keep`, from 0 to below 1, is the share of the old row in the new one.
    Source: Wu et al. 2018 (instance discrimination), section 3.2. Chapter: idfd.
    """

    rows: Tensor

    def __init__(self, n: int, dim: int, keep: float = 0.5):
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(n, dim), dim=1))
        self.keep = keep

    def scores(self, z: Tensor) -> Tensor:
        """Inner products (B,N) of embeddings z (B,D) with all rows, float32: gradients reach z."""
        with torch.autocast(z.device.type, enabled=False):
            return z.float() @ self.rows.T

    @torch.no_grad()
    def update(self, i: Tensor, z: Tensor) -> None:
        """Move the rows i (b,), no number twice in the batch, towards z (b,D), of all processes."""
        i, z = all_gather_rows(i), all_gather_rows(z.detach().float())
        self.rows[i] = F.normalize(torch.lerp(z, self.rows[i], self.keep), dim=1)

    @torch.no_grad()
    def entropy(self, temperature: float) -> Tensor:
        """Of each row's softmax over all rows, itself included: (N,) float, from 0 to ln N.

        Block by block; several processes share the rows. Source: Huang et al. 2019 (AND).
        """
        found = []
        for block in shard(self.rows).split(max(1, BUDGET // len(self.rows))):
            log_p = (self.scores(block) / temperature).log_softmax(1)
            found.append(-(log_p.exp() * log_p).sum(1))
        return all_gather_rows(torch.cat(found))
