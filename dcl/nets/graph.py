"""A graph-convolutional encoder: what a node is, and what it is linked with, become its code."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.objective import Encoder


def normalized(s: Tensor) -> Tensor:
    """Weights s (N,N) of a graph over the roots of both ends' sums, each end linked with itself.

    Source: Kipf & Welling 2017. Chapter: agae.
    """
    root = s.sum(1).rsqrt()
    return s * root[:, None] * root


LARGEST = 20_000
"""So many nodes at most: their graph takes 1.6 GB."""


class Graph(Encoder):
    """Two graph convolutions, to mu and log sigma of each node; the nodes are a set of images.

    X (N,d) are the images' features, pixels by default, or those of the module `features`, which
    gets no gradient. A^ (N,N) are the links, normalized; each node is linked with itself. Raises
    ValueError for more than `LARGEST` images. Source: Kipf & Welling 2016 (VGAE). Chapter: agae.
    """

    def __init__(self, images: Any, hidden: int, dim: int, features: Encoder | None = None):
        super().__init__()
        if (n := len(images)) > LARGEST:
            raise ValueError(f"images must be at most {LARGEST:,}, for a graph of all; got {n:,}")
        width = math.prod(images.shape[1:]) if features is None else features.out_dim
        self.features = nn.Flatten() if features is None else features
        self.hidden = nn.Linear(width, hidden, bias=False)
        self.mu, self.log_sigma = (nn.Linear(hidden, dim, bias=False) for _ in range(2))
        self.nodes, self.codes = nn.Buffer(torch.zeros(n, width)), nn.Buffer(torch.zeros(n, dim))
        # of the training alone: A^, A^ X and the share of links among all pairs
        self.links = nn.Buffer(torch.eye(n), persistent=False)
        self.smooth = nn.Buffer(torch.zeros(n, width), persistent=False)
        self.share = nn.Buffer(torch.tensor(0.5), persistent=False)
        self.out_dim = dim

    def connect(self, x: Tensor, s: Tensor) -> None:
        """Make the graph: features x (N,d), of which the scale is removed; weights s (N,N) or 0."""
        self.nodes.copy_(x)
        self.share.copy_((s > 0).float().mean())
        self.links.copy_(normalized(s))
        self.smooth.copy_(self.links @ (x / x.square().mean().sqrt().clamp(min=1e-12)))

    def encode(self) -> tuple[Tensor, Tensor]:
        """Of all nodes mu and log sigma, (N,D) each."""
        h = F.relu(self.hidden(self.smooth))
        return self.links @ self.mu(h), self.links @ self.log_sigma(h)

    def forward(self, x: Tensor) -> Tensor:
        """Codes (B,D) of the nodes nearest to images or vectors x; a node is nearest to itself."""
        z, exact = self.features(x).float(), "donot_use_mm_for_euclid_dist"
        return self.codes[torch.cdist(z, self.nodes, compute_mode=exact).argmin(1)]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        for name in ("nodes", "codes"):  # as many as were saved
            if (saved := state_dict.get(prefix + name)) is not None:
                like = getattr(self, name)
                setattr(self, name, torch.empty_like(saved, device=like.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
