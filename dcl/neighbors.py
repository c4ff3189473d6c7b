"""Exact nearest neighbours."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dcl.dist import all_rows, share

METRICS = ("cosine", "l2")
BUDGET = 2**24  # entries of the distance block that is held at once: 64 MB


def nearest(queries: Tensor, keys: Tensor, k: int, *, metric: str = "cosine") -> Tensor:
    """Rows of `keys` nearest to each query: indices (Q,k) int64, nearest first, on queries' device.

    queries (Q,D), keys (N,D) float, finite; equal distances are ordered by index. A query that is
    itself a key finds itself first (unless it has an exact duplicate of a lower index).
    Exact. On a CPU faiss does the search; without faiss, and on a GPU, torch does, block by block.
    Raises ValueError: shapes, NaN, k outside 1..N, unknown metric.
    Used by SCAN (Van Gansbeke et al. 2020, section 2.1); chapter 04-scan.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}")
    for name, z in (("queries", queries), ("keys", keys)):
        if z.ndim != 2 or 0 in z.shape:
            raise ValueError(f"{name} must be (rows, dimensions); got shape {tuple(z.shape)}")
        if not torch.isfinite(z).all():
            raise ValueError(f"{name} must be finite; got NaN or infinity")
    if queries.shape[1] != keys.shape[1]:
        raise ValueError(
            f"queries and keys must have the same dimension; got {queries.shape[1]} and "
            f"{keys.shape[1]}"
        )
    if not 1 <= k <= len(keys):
        raise ValueError(f"k must be between 1 and the number of keys, {len(keys)}; got {k}")
    q, x = queries.detach().float(), keys.detach().float().to(queries.device)
    if metric == "cosine":
        q, x = F.normalize(q, dim=1), F.normalize(x, dim=1)
    search = _torch_search if q.is_cuda or not _has_faiss() else _faiss_search
    score, index = search(q, x, k, metric)
    # ties by index: sort by index first, then stably by score
    index, order = index.sort(dim=1)
    order2 = score.gather(1, order).sort(dim=1, stable=True).indices
    return index.gather(1, order2)


def mine(z: Tensor, k: int) -> Tensor:
    """The k nearest other rows of each row of z (N,D), by cosine: indices (N,k) int64.

    Several processes share the queries out between them.
    Raises ValueError unless k is between 1 and N - 1. Source: SCAN section 2.1; chapter 04-scan.
    """
    if not 1 <= k < len(z):
        raise ValueError(
            f"k must be between 1 and the number of rows less one, {len(z) - 1}; got {k}"
        )
    rows = share(torch.arange(len(z), device=z.device))
    found = nearest(z[rows], z, k + 1)
    own = found == rows[:, None]
    own[:, -1] |= ~own.any(1)  # k + 1 or more exact duplicates can push a row out of its own list
    return all_rows(found[~own].view(-1, k))


def draw(neighbors: Tensor, i: Tensor, include_own: bool = False) -> Tensor:
    """One random neighbour (B,) of each of the rows i (B,), from neighbors (N,k)."""
    column = torch.randint(neighbors.shape[1] + include_own, (len(i), 1), device=i.device)
    return torch.cat([neighbors[i], i[:, None]], 1).gather(1, column)[:, 0]  # the own row is last


def agreement(neighbors: Tensor, labels: Tensor) -> float:
    """Share, 0 to 1, of mined neighbours (N,k) that have the label (N,) of their image.

    A diagnostic: it needs labels and so belongs to the caller, never to `fit`. Chapter 04-scan.
    """
    labels = labels.to(neighbors.device)
    return (labels[neighbors] == labels[:, None]).float().mean().item()


def _has_faiss() -> bool:
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


def _faiss_search(q: Tensor, x: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    import faiss

    index = (faiss.IndexFlatIP if metric == "cosine" else faiss.IndexFlatL2)(x.shape[1])
    index.add(np.ascontiguousarray(x.numpy()))
    score, found = index.search(np.ascontiguousarray(q.numpy()), k)
    sign = -1 if metric == "cosine" else 1
    return sign * torch.from_numpy(score), torch.from_numpy(found)


def _torch_search(q: Tensor, x: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    scores, indices = [], []
    half = (x * x).sum(1) / 2 if metric == "l2" else 0.0  # |q-x|^2 / 2 = |q|^2/2 - q.x + |x|^2/2
    for block in q.split(max(1, BUDGET // len(x))):
        distance = half - block @ x.T
        score, index = distance.topk(k, dim=1, largest=False)
        scores.append(score)
        indices.append(index)
    return torch.cat(scores), torch.cat(indices)
