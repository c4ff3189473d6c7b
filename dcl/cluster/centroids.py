"""Centroids: of k-means on the embeddings after training, or fixed ones."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.cluster.kmeans import kmeans
from dcl.objective import Objective
from dcl.train import extract


class Centroids(nn.Module):
    """K centroids (K,D) of k-means, spherical or not: the best of `starts` starts."""

    def __init__(self, k: int, dim: int, *, spherical: bool = False, starts: int = 10):
        super().__init__()
        self.centroids = nn.Buffer(torch.zeros(k, dim))
        self.spherical, self.starts = spherical, starts

    def fit(self, z: Tensor) -> None:
        """Set the centroids to those of embeddings z (N,D)."""
        k = len(self.centroids)
        found = kmeans(z, k, n_init=self.starts, spherical=self.spherical)
        self.centroids.copy_(found.centroids)

    def forward(self, z: Tensor) -> Tensor:
        """Similarity (B,K) of rows z (B,D) to the centroids: cosine, or minus squared distance.

        Raises ValueError before `fit`.
        """
        if not self.centroids.any():
            raise ValueError("the clusters must be fitted first: call clusters.fit(embeddings)")
        return z @ self.centroids.T if self.spherical else -(torch.cdist(z, self.centroids) ** 2)


def simplex(k: int, least: int) -> Tensor:
    """K directions as far apart as can be, with products of -1/(K-1): (K,d) float32.

    d is `least`, or K-1 if that is more. Not learned. Source: Tsai et al. 2021. Chapter: mice.
    """
    products = (k * torch.eye(k - 1, dtype=torch.float64) - 1) / (k - 1)
    corners = torch.linalg.cholesky(products)  # all but the last, which makes their sum 0
    corners = torch.cat([corners, -corners.sum(0, keepdim=True)])  # (K,K-1)
    return F.pad(corners, (0, max(0, least - k + 1))).float()


class Representation(Objective):
    """An objective that learns an embedding; k-means clusters it after training.

    `fit` of such a method ends with ``fit_clusters(images)``. Set `clusters` in ``__init__``.
    """

    clusters: Centroids

    def fit_clusters(self, images: Tensor) -> None:
        """k-means on the embeddings of images uint8 (N,C,H,W), or vectors, in evaluation mode."""
        self.clusters.fit(extract(self.embed, images))

    def predict_proba(self, x: Tensor) -> Tensor:
        """Softmax (B,K) of 10 times the similarity to the centroids: not calibrated.

        Raises ValueError before `fit_clusters`.
        """
        return (10 * self.clusters(self.embed(x))).softmax(1)
