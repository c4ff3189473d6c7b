"""Ensemble clustering: one partition out of several of the same images.

R partitions are `labelings` (R,N) int64, whose numbers from 0 mean something only within their
row; rows may have different numbers of clusters. What they agree on is the co-association: the
share of partitions that put two images together. Images that all partitions treat alike have the
same signature and are interchangeable, so the work is done on unique signatures with their counts.
Chapter: agae.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dcl.config import check_whole

LARGEST = 5000
"""Signatures that `evidence_accumulation` compares with each other: 200 MB of distances."""


def signatures(labelings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The different columns (R,S) of labelings (R,N), in order; each image's (N,); counts (S,).

    All int64; ``columns[:, inverse]`` is labelings. Raises TypeError, ValueError naming labelings.
    """
    check_labelings(labelings)
    return torch.unique(labelings, dim=1, return_inverse=True, return_counts=True)


def incidence(labelings: Tensor) -> Tensor:
    """Which clusters each image is in: (N,C) float32 of 0 and 1, a column for each of all rows'."""
    check_labelings(labelings)
    numbered = [row.unique(return_inverse=True)[1] for row in labelings]
    return torch.cat([F.one_hot(row) for row in numbered], 1).float()


def coassociation(labelings: Tensor) -> Tensor:
    """Share of the partitions (R,N) that put images i and j together: (N,N) float32, diagonal 1.

    Also of the columns of `signatures`. Raises as that. Source: Fred & Jain 2005. Chapter: agae.
    """
    h = incidence(labelings)
    return h @ h.T / len(labelings)


def evidence_accumulation(labelings: Tensor, k: int) -> Tensor:
    """Consensus (N,) int64 in 0..k-1: average linkage of 1 - co-association, cut at k clusters.

    labelings (R,N). Exact up to `LARGEST` signatures; of more, the commonest are clustered, and
    every other joins the cluster with whose images it is together in most partitions, on average.
    Raises TypeError, ValueError: labelings; k not between 1 and the number of signatures.
    Source: Fred & Jain 2005. Chapter: agae.
    """
    columns, inverse, counts = _enough(labelings, k)
    order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(0))
    order = order.to(counts.device)  # among equal counts a fair draw
    order = order[counts[order].argsort(descending=True, stable=True)]
    some, rest = order[:LARGEST].sort().values, order[LARGEST:]
    distance = 1 - coassociation(columns[:, some]).double()
    found = average_linkage(distance.cpu().numpy(), counts[some].cpu().numpy(), k)
    labels = torch.empty_like(counts)
    labels[some] = torch.from_numpy(found).to(labels)
    if len(rest):
        h = incidence(columns)
        inside = F.one_hot(labels[some], k) * counts[some, None]  # (s,k) images
        profiles = h[some].T @ (inside / inside.sum(0)).float()  # (C,k) shares of a cluster
        labels[rest] = (h[rest] @ profiles).argmax(1)
    return labels[inverse]


def average_linkage(distance: np.ndarray, counts: np.ndarray, k: int) -> np.ndarray:
    """Average linkage (UPGMA), cut at k clusters: (S,); point i of S stands for counts[i] points.

    distance (S,S) float64, which is used up. By chains of nearest neighbours, in S^2 steps: each
    point's nearest is the next of the chain, until two are each other's nearest and merge.
    Sources: Sokal & Michener 1958; Murtagh 1983. Chapter: agae.
    """
    # SciPy's cannot begin with points that stand for several
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n, size, chain = len(distance), counts.astype(float), [0]
    heights: list[float] = []
    merged: list[tuple[int, int]] = []
    np.fill_diagonal(distance, np.inf)
    while len(merged) < n - 1:
        a = chain[-1]
        b = int(distance[a].argmin())
        if len(chain) == 1 or distance[a, b] < distance[a, chain[-2]]:
            chain.append(b)
            continue
        b = chain[-2]
        heights.append(distance[a, b])
        merged.append((a, b))  # from now on b stands for both
        row = (size[a] * distance[a] + size[b] * distance[b]) / (size[a] + size[b])
        size[b] += size[a]
        distance[a], distance[:, a] = np.inf, np.inf
        distance[b], distance[:, b] = row, row
        del chain[-2:]
        chain = chain or [b]
    lowest = np.argsort(heights, kind="stable")[: n - k]
    a, b = np.array(merged, dtype=int).reshape(-1, 2)[lowest].T
    links = coo_array((np.ones(len(a)), (a, b)), shape=(n, n))
    return connected_components(links, directed=False)[1]


def spectral(labelings: Tensor, k: int, seed: int = 0) -> Tensor:
    """Consensus (N,) int64 in 0..k-1: normalised cut of the co-association graph, by k-means.

    labelings (R,N). As scikit-learn's SpectralClustering on the graph of all images, which is never
    made: its eigenvectors are singular vectors of `incidence`, with a row for each signature.
    Raises as `evidence_accumulation`. Sources: Strehl & Ghosh 2002; Ng, Jordan & Weiss 2001.
    Chapter: agae.
    """
    from sklearn.cluster import KMeans

    columns, inverse, counts = _enough(labelings, k)
    if k == len(counts):
        return inverse
    h, weight = incidence(columns).double(), counts.double()[:, None]
    degree = h @ (h.T @ weight)  # (S,1)
    scale = (weight / degree).sqrt()
    z = torch.linalg.svd(scale * h, full_matrices=False)[0][:, :k] / (weight * degree).sqrt()
    means = KMeans(k, n_init=10, random_state=seed)
    found = means.fit(z.cpu().numpy(), sample_weight=counts.cpu().numpy()).labels_
    return torch.from_numpy(found).to(inverse)[inverse]


def align(labels: Tensor, reference: Tensor, k: int, weight: Tensor | None = None) -> Tensor:
    """Renumber labels (N,) int64 so that most images agree with reference (N,): in 0..k-1.

    One to one (Hungarian); of more than k clusters, each that is left over joins the reference's
    cluster that it shares most images with. weight (N,): what each image counts; None: 1.
    Raises TypeError, ValueError: of another kind or length, reference not below k.
    """
    from scipy.optimize import linear_sum_assignment

    check_whole("k", k, 1)
    check_labelings(labels[None], "labels")
    check_labelings(reference[None], "reference", len(labels))
    if reference.max() >= k:
        raise ValueError(f"reference must be numbers below k = {k}; got {int(reference.max())}")
    found, own = labels.unique(return_inverse=True)
    shared = (own * k + reference).bincount(weight, minlength=len(found) * k)
    shared = shared.view(len(found), k).cpu()
    number = shared.argmax(1)
    rows, columns = linear_sum_assignment(shared.numpy(), maximize=True)
    number[rows] = torch.from_numpy(columns)
    return number.to(own.device)[own]


def majority(labelings: Tensor, k: int) -> Tensor:
    """Consensus (N,) int64 in 0..k-1: what most partitions say, once they share a numbering.

    The first numbering is that of the partition into k clusters with which the others agree most,
    so that their order does not matter; all are matched to it and vote, to the vote and vote again,
    while that raises the number of votes that agree. A tie stays as it was; a cluster can be voted
    empty. labelings (R,N). Raises TypeError, ValueError: labelings; no row has k clusters.
    Sources: Strehl & Ghosh 2002; Dudoit & Fridlyand 2003. Chapter: agae.
    """
    check_whole("k", k, 1)
    columns, inverse, counts = signatures(labelings)
    rows = [row.unique(return_inverse=True)[1] for row in columns]
    starts = [row for row in rows if row.max() + 1 == k]
    if not starts:
        got = ", ".join(str(n) for n in sorted({int(row.max()) + 1 for row in rows}))
        raise ValueError(
            f"labelings must hold a partition into k = {k} clusters, to match the others with; "
            f"got {got}: evidence_accumulation and spectral take any"
        )

    def matched(vote: Tensor) -> tuple[int, Tensor]:
        votes = torch.stack([align(row, vote, k, counts) for row in rows])  # (R,S)
        return int(((votes == vote) * counts).sum()), votes

    vote = max(starts, key=lambda row: matched(row)[0])
    agree, votes = matched(vote)
    while True:
        ballots = 2 * F.one_hot(votes, k).sum(0) + F.one_hot(vote, k)  # (S,k)
        before, vote = vote, ballots.argmax(1)
        now, votes = matched(vote)
        if now <= agree:
            return before[inverse]
        agree = now


def agreement(labelings: Tensor, consensus: Tensor) -> Tensor:
    """Share of the partitions (R,N), matched to it, that agree with the consensus (N,): (N,) float.

    From 0 to 1; the images where it is lowest are those to look at. Raises as `align`.
    """
    check_labelings(labelings)
    k = int(consensus.max()) + 1
    return torch.stack([align(row, consensus, k) == consensus for row in labelings]).float().mean(0)


def check_labelings(labelings: Tensor, name: str = "labelings", n: int = 0) -> None:
    """Refuse all but a tensor (R,N) int64 of numbers from 0; n: the N that it must have."""
    if not isinstance(labelings, Tensor) or labelings.dtype != torch.int64:
        got = getattr(labelings, "dtype", type(labelings).__name__)
        raise TypeError(f"{name} must be a tensor of int64; got {got}")
    shape = tuple(labelings.shape)
    if len(shape) != 2 or 0 in shape or n not in (0, shape[1]):
        raise ValueError(f"{name} must be (partitions, {n or 'images'}); got {shape}")
    if labelings.min() < 0:
        raise ValueError(f"{name} must be numbers from 0; got {int(labelings.min())}")


def _enough(labelings: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    # the signatures, of which there must be k
    check_whole("k", k, 1)
    columns, inverse, counts = signatures(labelings)
    if k > (most := min(len(counts), LARGEST)):
        raise ValueError(
            f"k must be between 1 and {most}, the number of images that labelings tell apart; "
            f"got {k}"
        )
    return columns, inverse, counts
