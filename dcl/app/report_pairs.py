"""Pairs that a report shows side by side: clusters that may be one, images that may be the same."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dcl.app.report_clusters import Cluster
from dcl.cluster.neighbors import nearest

CLUSTERS, IMAGES = 3, 8
"""How many pairs of each kind a report shows."""

ROWS = 20_000
"""Among more rows than this, evenly thinned out, near-duplicates are not searched."""


class ClusterPair(NamedTuple):
    """Two clusters with close prototypes."""

    a: Cluster  # the larger
    b: Cluster
    closeness: float  # distance of the prototypes over the mean of the two spreads


def cluster_pairs(found: Sequence[Cluster], z: Tensor, most: int = CLUSTERS) -> list[ClusterPair]:
    """The pairs of clusters that are closest relative to their spread, closest first.

    found: clusters of the features z (N,D). Distances are 1 - cosine. Near 1 the prototypes are as
    close as a member is to its own: the two may be one.
    """
    unit = F.normalize(z[[c.prototype for c in found]].float(), dim=1)
    away = (1 - unit @ unit.T).clamp(min=0)
    pairs = []
    for i, j in combinations(range(len(found)), 2):
        spread = max((found[i].spread + found[j].spread) / 2, 1e-6)  # 0: members that are equal
        pairs.append(ClusterPair(found[i], found[j], float(away[i, j]) / spread))
    return sorted(pairs, key=lambda pair: pair.closeness)[:most]


class Twins(NamedTuple):
    """Near-duplicates: rows a < b, and 1 minus the cosine of their features."""

    a: int
    b: int
    distance: float


def near_duplicates(z: Tensor, most: int = IMAGES) -> tuple[list[Twins], float]:
    """Pairs of rows that are closest by cosine, each row in one pair at most; and the median row's
    distance to its nearest neighbour.

    z (N,D), finite; of more than `ROWS` rows, every second, third, ... is looked at.
    """
    step = -(-len(z) // ROWS)
    unit = F.normalize(z[::step].float(), dim=1)
    if len(unit) < 2:
        return [], 0.0
    two = nearest(unit, unit, 2)
    own = two == torch.arange(len(unit))[:, None]
    own[:, 1] |= ~own.any(1)  # with exact duplicates a row may not find itself
    other = two[~own]
    away = (unit - unit[other]).square().sum(1) / 2  # 1 - cosine, exact near 0
    pairs: list[Twins] = []
    shown: set[int] = set()
    for i in away.argsort(stable=True).tolist():
        j = int(other[i])
        if not shown & {i, j}:
            shown |= {i, j}
            pairs.append(Twins(min(i, j) * step, max(i, j) * step, float(away[i])))
        if len(pairs) == most:
            break
    return pairs, float(away.median())
