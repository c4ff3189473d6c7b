"""What people clean first: identical images, near-duplicates, and images that are like no other.

All by distance in the features, 1 minus the cosine, and measured with the set's own rule: the usual
distance, that of the median image to its nearest other. What is near differs from network to
network and from set to set, so a fixed distance would mean little. The two limits were tried on
photographs with altered copies and oddities among them (book/tried.md). Chapter: your-images.
"""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dcl.cluster.neighbors import others

NEAR = 0.35
"""Closer than this share of the usual distance are near-duplicates."""

FENCE = 1.5
"""Above the upper quartile by more than so many quartile distances are outliers, as beyond the
whiskers of a box plot (Tukey 1977): some spread of the distances is every set's own."""

NEIGHBOURS = 5
"""Of each image so many neighbours are looked at, so that two odd images that are alike are still
outliers."""

WORK = 2**39
"""Rows squared times columns. A larger set is thinned out evenly, or it would take minutes."""


class Pair(NamedTuple):
    """Two rows a < b, and the distance of their features."""

    a: int
    b: int
    distance: float


class Cleaning(NamedTuple):
    """What `cleaning` found. Rows are those of the data."""

    same: list[list[int]]
    """Groups of rows with the same pixels, or numbers; the first stands for all."""
    near: list[Pair]
    """Near-duplicates, closest first; of rows that are the same only the first is in a pair."""
    closest: list[Pair]
    """The closest pairs, near-duplicates or not, each row in one at most."""
    far: list[tuple[int, float]]
    """Outliers and how far they are in multiples of the usual distance, farthest first."""
    usual: float
    """The distance of the median row to its nearest other row; 0: of fewer than two rows."""
    step: int
    """Every row was compared (1), every second, third, ..."""


def cleaning(z: Tensor, images: Tensor | None = None, most: int = 12) -> Cleaning:
    """Near-duplicates and outliers of a set, and rows that are the same, if the images are given.

    features z (N,D), finite; images uint8 (N,C,H,W), or vectors (N,d), read row by row; most: how
    many `closest` pairs. Raises ValueError for other lengths. Chapter: your-images.
    """
    if images is not None and len(images) != len(z):
        raise ValueError(f"z must have a row for each of the {len(images)} rows; got {len(z)}")
    step = 1
    while (len(z) // step) ** 2 * z.shape[1] > WORK:
        step += 1
    same = [] if images is None else identical(images)
    later = {row for group in same for row in group[1:]}
    rows = torch.tensor([row for row in range(0, len(z), step) if row not in later])
    k = min(NEIGHBOURS, len(rows) - 1)
    if k < 1:
        return Cleaning(same, [], [], [], 0.0, step)
    away, other = distances(z[rows], k)
    usual = float(away[:, 0].median())
    order = away[:, 0].argsort(stable=True).tolist()
    closest: list[Pair] = []
    shown: set[int] = set()
    for pair in (_pair(rows, i, other[i, 0], away[i, 0]) for i in order):
        if len(closest) < most and not shown & {pair.a, pair.b}:
            shown |= {pair.a, pair.b}
            closest.append(pair)
    close = (away < NEAR * usual).nonzero().tolist()
    near = {_pair(rows, i, other[i, n], away[i, n]) for i, n in close}  # from either side: once
    reach = away.mean(1)
    low, high = reach.quantile(torch.tensor([0.25, 0.75])).tolist()
    high += FENCE * (high - low)
    far = [
        (int(rows[i]), float(reach[i]) / max(usual, 1e-12))
        for i in reach.argsort(descending=True, stable=True).tolist()
        if reach[i] > high > 0
    ]
    return Cleaning(same, sorted(near, key=lambda p: (p.distance, p)), closest, far, usual, step)


def _pair(rows: Tensor, i: int, j: Tensor, distance: Tensor) -> Pair:
    a, b = sorted((int(rows[i]), int(rows[j])))
    return Pair(a, b, float(distance))


def distances(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """1 - cosine (N,k) to the k nearest other rows of z (N,D), and which they are (N,k) int64."""
    unit = F.normalize(z.float(), dim=1)
    other = others(unit, torch.arange(len(unit)), k)
    away = [(unit - unit[column]).square().sum(1) / 2 for column in other.T]  # exact near 0
    return torch.stack(away, 1), other


def identical(images: Tensor) -> list[list[int]]:
    """Groups of two and more rows with equal values, in order, of images (N, ...)."""
    groups: dict[bytes, list[int]] = {}
    for row in range(len(images)):
        values = images[row].cpu().contiguous().numpy()
        groups.setdefault(hashlib.blake2b(values.data).digest(), []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]
