"""The newest embeddings of earlier batches, first in, first out."""

from typing import Any

import torch
from torch import Tensor, nn

from dcl.runtime.dist import all_gather_rows


class Queue(nn.Module):
    """Rows (A,length,D) of A views, the newest first; every process holds all of them.

    Not averaged, not trained; in a checkpoint, but in published weights only if its owner says so.
    Source: He et al. 2020 (MoCo); SwAV, section 3.1. Chapter: swav.
    """

    rows: Tensor

    def __init__(self, views: int, length: int, dim: int):
        super().__init__()
        self.register_buffer("rows", torch.zeros(views, length, dim))
        self.filled = 0  # a number of the host: to read a buffer would make the GPU wait

    def __len__(self) -> int:
        return self.rows.shape[1]

    @property
    def full(self) -> bool:
        """Whether no row is left of the zeros it began with: counted, not read from the rows."""
        return 0 < len(self) <= self.filled

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Put the rows (A,b,D) of this batch, those of all processes, in front."""
        if not len(self):
            return
        latest = all_gather_rows(rows.detach().transpose(0, 1)).transpose(0, 1)  # (A,B,D)
        self.rows = torch.cat([latest, self.rows[:, : len(self) - latest.shape[1]]], 1)
        self.filled += latest.shape[1]

    def get_extra_state(self) -> dict[str, int]:
        """How many rows came, for the checkpoint."""
        return {"filled": self.filled}

    def set_extra_state(self, state: Any) -> None:
        """How many rows came, from the checkpoint."""
        self.filled = state["filled"]
