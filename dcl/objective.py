"""What `dcl.train.train` is given: an objective, its encoder, and a monitor that looks on."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """The type of every encoder: images (B,C,H,W), or vectors, to features (B,out_dim)."""

    out_dim: int


class Objective(nn.Module):
    """What gradient descent minimises. Override `forward` and `predict`; the rest is optional."""

    encoder: Encoder
    epoch: int = 0
    step: int = 0
    """Epochs and optimiser steps before the current one, counted by `train`, also across resumes.
    They live on the host: reading them from a buffer would make the GPU wait."""
    transient: tuple[str, ...] = ()
    """Buffers that belong to the training set: in a checkpoint, not in published weights."""

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Named losses of images x, float (B,C,H,W) in [0,1], which are rows i (B,) of the set.

        Vectors are (B,d) and unscaled, here and below. The loop minimises "loss"; every other
        entry is logged.
        """
        raise TypeError(f"{type(self).__name__} must define forward(x, i)")

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings (B,D), which are clustered, of images x, float (B,C,H,W) in [0,1]."""
        return self.encoder(x)

    def predict_proba(self, x: Tensor) -> Tensor:
        """Cluster probabilities (B,K) of images x, float (B,C,H,W) in [0,1]."""
        raise TypeError(f"{type(self).__name__} must define predict_proba(x)")

    def predict(self, x: Tensor) -> Tensor:
        """Cluster (B,) int64 of images x, float (B,C,H,W) in [0,1]: the most probable."""
        return self.predict_proba(x).argmax(1)

    def chances(self) -> dict[str, float]:
        """The value of each loss that is a cross-entropy when the prediction is uniform."""
        return {}

    def before_epoch(self, epoch: int) -> None:
        """Compute what needs the whole set: pseudo-labels, centroids."""

    def after_step(self) -> None:
        """Change what the optimiser does not: queues, moving averages, step counters."""

    def finished(self) -> bool:
        """Whether training ends before this epoch; asked after `before_epoch`."""
        return False

    def length(self, n: int) -> int:
        """How many rows one epoch over a set of n serves, the same for every epoch: here n."""
        return n

    def order(self, n: int) -> Tensor:
        """The rows (length,) of one epoch over a set of n, in the order they are served."""
        return torch.randperm(n)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser; a group may override its settings."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]


class Classifier(Objective):
    """An encoder that stays as it is and a trained head: features (B,out_dim) to logits (B,K)."""

    def __init__(self, encoder: Encoder, head: nn.Module, config: Any):
        super().__init__()
        self.encoder, self.head, self.config = encoder, head, config
        self.requires_grad_(False).eval()

    def predict_proba(self, x: Tensor) -> Tensor:
        """Cluster probabilities (B,K)."""
        return self.head(self.encoder(x)).float().softmax(1)


class Embedding(Encoder):
    """What an objective embeds as the features of an encoder, for images like `images`."""

    def __init__(self, objective: Objective, images: Tensor):
        super().__init__()
        self.objective = objective
        self.eval()
        with torch.no_grad():
            self.out_dim = objective.embed(images[:1].float() / 255).shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """Images (B,C,H,W) in [0,1] to embeddings (B,out_dim)."""
        return self.objective.embed(x)


class Monitor(Protocol):
    """Called after every epoch with its stage, number, objective and mean losses."""

    def __call__(
        self, stage: str, epoch: int, objective: Objective, losses: dict[str, float]
    ) -> None:
        """Look at the objective; the return value is ignored."""
