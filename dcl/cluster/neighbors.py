"""Exact nearest neighbours."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dcl.cluster.kmeans import check_finite
from dcl.runtime.dist import all_gather_rows, shard

METRICS = ("cosine", "l2")
BUDGET = 2**22  # scores held in memory on a CPU, 16 MB; on a GPU 64 times that
KEYS = 2**16  # keys that are compared at once
DEEP = 32  # columns of a group in `_largest`


def nearest(queries: Tensor, keys: Tensor, k: int, *, metric: str = "cosine") -> Tensor:
    """Rows of `keys` nearest to each query: indices (Q,k) int64, nearest first, on queries' device.

    queries (Q,D), keys (N,D) float, finite; equal distances are ordered by index. A query that is
    itself a key finds itself first (unless it has an exact duplicate of a lower index).
    Exact, block by block, never holding Q x N similarities.
    Raises ValueError: shapes, NaN, k outside 1..N, unknown metric.
    Used by SCAN (Van Gansbeke et al. 2020, section 2.1); chapter scan.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}")
    for name, z in (("queries", queries), ("keys", keys)):
        if z.ndim != 2 or 0 in z.shape:
            raise ValueError(f"{name} must be (rows, dimensions); got shape {tuple(z.shape)}")
        check_finite(z, name)
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
    score, index = _search(q, x, k, metric)
    # ties by index: sort by index first, then stably by score
    index, order = index.sort(dim=1)
    order2 = score.gather(1, order).sort(dim=1, descending=True, stable=True).indices
    return index.gather(1, order2)


def mine(z: Tensor, k: int, metric: str = "cosine") -> Tensor:
    """The k nearest other rows of each row of z (N,D): indices (N,k) int64; metric as in `nearest`.

    Several processes share the queries.
    Raises ValueError unless k is between 1 and N - 1. Source: SCAN section 2.1; chapter scan.
    """
    if not 1 <= k < len(z):
        raise ValueError(
            f"k must be between 1 and the number of rows less one, {len(z) - 1}; got {k}"
        )
    rows = shard(torch.arange(len(z), device=z.device))
    return all_gather_rows(others(z, rows, k, metric))


def others(z: Tensor, rows: Tensor, k: int, metric: str = "cosine") -> Tensor:
    """As `mine`, but only for the given rows (R,) of z, and of one process: indices (R,k) int64."""
    found = nearest(z[rows], z, k + 1, metric=metric)
    own = found == rows[:, None]
    own[:, -1] |= ~own.any(1)  # k + 1 or more exact duplicates can push a row out of its own list
    return found[~own].view(-1, k)


def nearest_other(z: Tensor) -> Tensor:
    """The nearest other row (B,) of each row of z (B,D), of a batch, by Euclidean distance.

    Source: Dang et al. 2021 (NNM). Chapter: nnm.
    """
    return torch.cdist(z, z).fill_diagonal_(torch.inf).argmin(1)


def draw(neighbors: Tensor, i: Tensor) -> Tensor:
    """One random neighbour (B,) of each of the rows i (B,), from neighbors (N,k)."""
    column = torch.randint(neighbors.shape[1], (len(i), 1), device=i.device)
    return neighbors[i].gather(1, column)[:, 0]


def majority(neighbors: Tensor, labels: Tensor, k: int) -> Tensor:
    """The commonest label (N,), of k, of each image and its mined neighbours (N,j); ties: lowest.

    labels (N,) int64. Source: Park et al. 2021 (RUC), sampling by metric. Chapter: ruc.
    """
    votes = F.one_hot(labels, k)
    return votes.scatter_add(1, labels[neighbors], torch.ones_like(neighbors)).argmax(1)


def agreement(neighbors: Tensor, labels: Tensor) -> float:
    """Fraction, 0 to 1, of mined neighbours (N,k) with the same label (N,) as their image.

    A diagnostic: it needs labels and so belongs to the caller, never to `fit`. Chapter scan.
    """
    labels = labels.to(neighbors.device)
    return (labels[neighbors] == labels[:, None]).float().mean().item()


def _search(q: Tensor, x: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    # the k largest of q.x - |x|^2/2, or of q.x, for each query (Q,k), and the keys' indices
    half = (x * x).sum(1) / 2 if metric == "l2" else None
    rows = BUDGET * (64 if x.is_cuda else 1) // min(len(x), KEYS)
    values, indices = [], []
    for queries in q.split(max(1, rows)):
        value = x.new_empty(len(queries), 0)
        index = value.long()
        for start in range(0, len(x), KEYS):
            stop = start + KEYS
            score = queries @ x[start:stop].T
            high, at = _largest(score if half is None else score.sub_(half[start:stop]), k)
            value, index = torch.cat([value, high], 1), torch.cat([index, at + start], 1)
            if start:
                value, best = value.topk(min(k, value.shape[1]), dim=1)
                index = index.gather(1, best)
        values.append(value)
        indices.append(index)
    return torch.cat(values), torch.cat(indices)


def _largest(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    # `score.topk(k)` in a fifth of the time. Cut into groups of DEEP, the k largest lie in the k
    # groups with the largest maxima; a maximum over strided columns is quick, a topk is slow.
    n = score.shape[1]
    groups = n // DEEP
    if groups <= k:
        high, at = score.topk(min(k, n), dim=1)
        return high, at
    best = score[:, : DEEP * groups].unflatten(1, (DEEP, groups)).amax(1).topk(k, dim=1).indices
    columns = torch.arange(n, device=score.device)
    members = best[:, None] + columns[: DEEP * groups : groups, None]  # (Q,DEEP,k)
    rest = columns[DEEP * groups :].expand(len(score), -1)  # fewer than DEEP
    candidates = torch.cat([members.flatten(1), rest], 1)
    high, at = score.gather(1, candidates).topk(k, dim=1)
    return high, candidates.gather(1, at)
