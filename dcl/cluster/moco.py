"""MoCo's pair of networks and queue, for objectives that contrast with keys of earlier batches."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.cluster.contrast import info_nce
from dcl.cluster.queue import Queue
from dcl.objective import Encoder, Objective
from dcl.optim import ema


class MoCo(Objective):
    """A query network, encoder and head, that is trained; a key network that follows it; a queue.

    Embeddings have length 1. A subclass's `forward` calls `contrast`, or sets `latest`, the keys
    (experts,B,D) of its batch. length: keys in the queue, rounded down to whole batches of `batch`
    keys, so that processes cut it at the same one. experts: the embeddings of an image, if the head
    gives several, (B,experts,D); each has a queue of its own.
    Raises ValueError for a queue shorter than a batch.
    Source: He et al. 2020, Algorithm 1. Chapters: pcl and mice.
    """

    transient: tuple[str, ...] = ("queue.rows",)

    def __init__(
        self,
        encoder: Encoder,
        head: nn.Module,
        dim: int,
        length: int,
        batch: int,
        momentum: float,
        experts: int = 1,
    ):
        super().__init__()
        if length < batch:
            raise ValueError(f"queue_length must be at least {batch}, a batch; got {length}")
        self.encoder, self.head, self.momentum = encoder, head, momentum
        self.key = copy.deepcopy(self.query()).requires_grad_(False)
        self.queue = Queue(experts, length - length % batch, dim, random=True)

    def query(self) -> nn.Sequential:
        """The network that is trained, images to embeddings before they are scaled."""
        return nn.Sequential(self.encoder, self.head)

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings (B,D) float32 of images (B,C,H,W) in [0,1] by the query network.

        Those of several experts are one: side by side, and again of length 1.
        """
        each = F.normalize(self.query()(x).float(), dim=-1)
        return each.flatten(1) / math.sqrt(len(self.queue.rows))

    @torch.no_grad()
    def embed_key(self, x: Tensor) -> Tensor:
        """Those by the key network, (B,D) or (B,experts,D): no gradient, and its own BatchNorm."""
        return F.normalize(self.key(x).float(), dim=-1)

    def contrast(self, queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
        """InfoNCE of queries (B,D) with their keys (B,D), which join the queue after the step."""
        self.latest = keys[None]
        return info_nce(queries, keys, self.queue.rows[0], temperature)

    def after_step(self) -> None:
        """Move the key network by a share, 1 - momentum, and queue the keys."""
        ema(self.key, self.query(), self.momentum, buffers=False)
        self.queue.push(self.latest)
