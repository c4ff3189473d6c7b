"""Clusters by density among k-reciprocal neighbours, as in re-identification: K is found."""

import torch
from torch import Tensor


def _nearest(cosine: Tensor, k: int) -> Tensor:
    """Whether column j is among the k rows most similar to row i: (N,N) bool."""
    index = cosine.topk(min(k, len(cosine)), dim=1).indices
    return torch.zeros_like(cosine, dtype=torch.bool).scatter_(1, index, True)


def jaccard_distance(f: Tensor, k1: int = 30, k2: int = 6) -> Tensor:
    """Distances (N,N) in [0,1] of rows f (N,D) of length 1 by the neighbours that they share.

    Row i's set: the k1 nearest that also have i among theirs, with those of half as many that a
    member has mostly (2/3) in common with it. A member j weighs exp(-d(i, j)^2), averaged
    over the k2 nearest rows, i included; the distance is 1 - sum of minima / sum of maxima.
    Holds N x N floats. Source: Zhong et al. 2017 (re-ranking, k-reciprocal encoding), section 3,
    as in SpCL. Chapter: rlcc.
    """
    cosine = f @ f.T
    wide, narrow = (_nearest(cosine, k + 1) for k in (k1, round(k1 / 2)))  # i itself is one
    own, half = (wide & wide.T).float(), (narrow & narrow.T).float()
    joins = (own > 0) & (own @ half.T > 2 / 3 * half.sum(1))  # (N,N): j's half set comes with it
    members = (own > 0) | (joins.float() @ half > 0)
    weights = (2 * cosine - 2).masked_fill(~members, -torch.inf).softmax(1)
    first = _nearest(cosine, k2).float()
    weights = first @ weights / first.sum(1, keepdim=True)
    shared = torch.empty_like(cosine)
    for i, row in enumerate(weights):
        some = row.nonzero()[:, 0]
        shared[i] = torch.minimum(weights[:, some], row[some]).sum(1)
    return (1 - shared / (2 - shared)).clamp(0, 1)


def density_clusters(
    f: Tensor, eps: float = 0.6, min_samples: int = 4, k1: int = 30, k2: int = 6
) -> Tensor:
    """DBSCAN on the Jaccard distances of f (N,D): clusters (N,) int64 from 0, -1 for outliers.

    Rows within `eps` are neighbours; `min_samples` of them, itself included, make a row a core.
    Raises ValueError when there is no cluster at all. Source: Ester et al. 1996. Chapter: rlcc.
    """
    from sklearn.cluster import DBSCAN

    distance = jaccard_distance(f, k1, k2).cpu().numpy()
    found = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(distance)
    if found.max() < 0:
        raise ValueError(f"eps must be larger: no {min_samples} of {len(f)} rows are within {eps}")
    return torch.from_numpy(found).long().to(f.device)
