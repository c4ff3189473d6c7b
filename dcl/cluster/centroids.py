"""Clusters made of embeddings when training is over: k-means, and who is near which centroid."""

import torch
from torch import Tensor, nn

from dcl.cluster.kmeans import kmeans


class Centroids(nn.Module):
    """K centroids (K,D), spherical or not, of the best of ten starts of k-means."""

    centroids: Tensor

    def __init__(self, k: int, dim: int, *, spherical: bool = False):
        super().__init__()
        self.register_buffer("centroids", torch.zeros(k, dim))
        self.spherical = spherical

    def fit(self, z: Tensor) -> None:
        """Set the centroids to those of embeddings z (N,D)."""
        k = len(self.centroids)
        found = kmeans(z, k, n_init=10, spherical=self.spherical)
        self.centroids.copy_(found.centroids)

    def forward(self, z: Tensor) -> Tensor:
        """How near rows z (B,D) are to each centroid, (B,K): cosine, or minus squared distance.

        Raises ValueError before `fit`.
        """
        if not self.centroids.any():
            raise ValueError("the clusters must be fitted first: call clusters.fit(embeddings)")
        return z @ self.centroids.T if self.spherical else -(torch.cdist(z, self.centroids) ** 2)
