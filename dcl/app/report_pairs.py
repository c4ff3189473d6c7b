"""Pairs that a report shows side by side: clusters that may be one."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from dcl.app.report_clusters import Cluster

CLUSTERS = 3
"""How many pairs a report shows."""


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
