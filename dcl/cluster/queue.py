"""A first-in, first-out queue of embeddings from earlier batches."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.runtime.dist import all_gather_rows


class Queue(nn.Module):
    """Rows (A,length,D) of A views, the newest first; every process holds all of them.

    It begins with zeros, or with `random` unit vectors, which can be negatives from the start.
    Not trained; kept in checkpoints, and in published weights unless its owner lists it as
    `transient`.
    Source: He et al. 2020 (MoCo); SwAV, section 3.1. Chapters: swav and pcl.
    """

    rows: Tensor

    def __init__(self, views: int, length: int, dim: int, *, random: bool = False):
        super().__init__()
        start = torch.randn if random else torch.zeros
        self.register_buffer("rows", F.normalize(start(views, length, dim), dim=2))
        self.filled = 0  # on the host: reading a buffer would make the GPU wait

    def __len__(self) -> int:
        return self.rows.shape[1]

    @property
    def full(self) -> bool:
        """Whether rows have replaced all the initial ones: counted, not read from the rows."""
        return 0 < len(self) <= self.filled

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Put the batch's rows (A,b,D), gathered from all processes, in front."""
        if not len(self):
            return
        latest = all_gather_rows(rows.detach().transpose(0, 1)).transpose(0, 1)  # (A,B,D)
        self.rows = torch.cat([latest, self.rows[:, : len(self) - latest.shape[1]]], 1)
        self.filled += latest.shape[1]

    def get_extra_state(self) -> dict[str, int]:
        """The number of rows pushed, for the checkpoint."""
        return {"filled": self.filled}

    def set_extra_state(self, state: Any) -> None:
        """The number of rows pushed, from the checkpoint."""
        self.filled = state["filled"]
