"""A finished clustering, wherever it comes from, and which of its labels can be trusted."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from dcl.cluster.balance import surest
from dcl.cluster.neighbors import majority, mine
from dcl.objective import Encoder
from dcl.train import extract


class Labelled(nn.Module):
    """Labels of all images and a network, given to `fit` as its `encoder`. Chapter: ruc.

    encoder: what training begins with; labels (N,) int64 in 0..K-1 of the images, in order;
    confidence (N,) in 0..1, or none: all 1; space: what the neighbours are searched in, a pretext
    or a network; none: the encoder. Raises ValueError.
    """

    def __init__(
        self, encoder: Encoder, labels: Tensor, confidence: Tensor | None = None, space: Any = None
    ):
        super().__init__()
        sure = torch.ones(len(labels)) if confidence is None else confidence.float()
        if labels.ndim != 1 or labels.dtype != torch.int64 or labels.min() < 0:
            least = f", the least {labels.min()}" if labels.numel() else ""
            raise ValueError(
                f"labels must be int64 (N,), 0 or more; got {labels.dtype} "
                f"{tuple(labels.shape)}{least}"
            )
        if sure.shape != labels.shape or not ((sure >= 0) & (sure <= 1)).all():
            raise ValueError(
                f"confidence must be ({len(labels)},), numbers in 0..1; got {tuple(sure.shape)}, "
                f"{sure.min():.3g} to {sure.max():.3g}"
            )
        self.spec, self.name = "module", "python"  # for `dcl.app.run`: its architecture, its origin
        self.encoder, self.space, self.out_dim = encoder, space, encoder.out_dim
        self.labels, self.confidence = nn.Buffer(labels), nn.Buffer(sure.to(labels.device))

    def check(self, n: int, k: int) -> None:
        """Raise ValueError unless these are labels of n images in k clusters."""
        if len(self.labels) != n:
            raise ValueError(f"labels must be ({n},), one per image; got ({len(self.labels)},)")
        if (most := int(self.labels.max())) >= k:
            raise ValueError(f"labels must be numbers of {k} clusters, 0 to {k - 1}; got {most}")

    def forward(self, x: Tensor) -> Tensor:
        """Features (B,out_dim)."""
        return self.encoder(x)

    def embed(self, x: Tensor) -> Tensor:
        """Where neighbours are searched, (B,D)."""
        space = self.space or self.encoder
        return getattr(space, "embed", space)(x)

    def clean(self, images: Any, sampling: str, threshold: float, share: float, k: int) -> Tensor:
        """Which labels (N,) are clean: confident, those of most of k neighbours, or both.

        sampling: confidence, metric or hybrid. A `threshold` of confidence that leaves less than
        `share` of the images makes way for the surest `share` of each cluster, with a warning; it
        presumes an over-confident clustering. Source: Park et al. 2021 (RUC).
        """
        sure, n = self.confidence >= threshold, len(self.labels)
        if sampling != "metric" and (found := int(sure.sum())) < share * n:
            sure = surest(self.confidence, self.labels, share)
            said = f"only {found} of {n} images have a confidence of {threshold} or more"
            warnings.warn(f"{said}: the surest {share:.0%} of each cluster are taken", stacklevel=2)
        if sampling == "confidence":
            return sure
        most = int(self.labels.max()) + 1
        agree = majority(mine(extract(self.embed, images), k - 1), self.labels, most) == self.labels
        return agree if sampling == "metric" else sure & agree
