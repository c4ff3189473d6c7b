r"""How many clusters: a cheap sweep on fixed features, and how far to trust it.

For every candidate k, on subsamples of the features:

- **stability**: k-means is run on each subsample; the adjusted Rand index of two runs, on the
  images they share, averaged over all pairs (Ben-Hur et al. 2002)
- **silhouette** of these runs (Rousseeuw 1987)
- **bend**: every image starts as its own cluster and the two cheapest to merge (Ward 1963) are
  merged, again and again; the bend at k is the log of the cost of the merge from k to k - 1 over
  that of the merge before it, from k + 1 to k. It is high where merging starts to hurt
- **balance**: entropy of the cluster sizes at k in that run, over ln k; shown, not ranked by

Each of the first three is scaled over the candidates to 0..1, and their mean is the score. The
same sweep on two clouds without clusters, a Gaussian and a box, both with the covariance of the
features, shows what the numbers mean (as the gap statistic does, Tibshirani et al. 2001): unless
the silhouette is above the clouds', there is no structure to count.

No criterion finds classes: it finds groups in these features. Two ways of writing a 1 are two
groups. Chapter: your-images.
"""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

SAMPLE = 2500  # rows that are used: the cost of Ward and the silhouette grows with their square
DIMENSIONS = 50  # principal directions that are kept
SUBSAMPLES = 6
SHARE = 0.8  # of the sample in each subsample
EXCESS = 0.03  # silhouette above the clouds' that counts as structure
MEASURES = ("stability", "silhouette", "bend", "balance")
LEAD = 0.2  # of the best score over the second that counts as clear


@dataclass(frozen=True)
class Row:
    """The measures of the sweep at one k."""

    k: int
    stability: float
    """0 (chance) to 1 (every subsample gives the same clusters)."""
    silhouette: float
    """-1 to 1: how much closer an image's own cluster is than the next one."""
    bend: float
    """Log of the ratio of two successive merge costs, at least 0."""
    balance: float
    """0 (one cluster has nearly all) to 1 (all sizes equal)."""
    score: float = 0.0
    """0 to 1, the mean of the first three, each scaled over the candidates."""


@dataclass(frozen=True)
class Choice:
    """The ranked numbers of clusters, the table behind them, and how clear the choice is."""

    best: int
    ranked: list[int]
    """All candidates, best first."""
    table: list[Row]
    """One row for each candidate, by k."""
    sure: Literal["clear", "weak", "no structure"]
    sentence: str
    """The verdict in words."""
    cloud: list[Row]
    """The same for the clouds without clusters: the larger value of the two (score 0)."""

    def __str__(self) -> str:
        """The table, and the verdict in words."""
        head = (
            f"{'k':>4} {'score':>6} {'stability':>10} {'silhouette':>11} {'bend':>6} {'balance':>8}"
        )
        rows = [
            f"{r.k:>4} {r.score:>6.2f} {r.stability:>10.3f} {r.silhouette:>11.3f} "
            f"{r.bend:>6.2f} {r.balance:>8.2f}"
            for r in self.table
        ]
        return "\n".join([head, *rows, self.sentence])


def choose_k(z: Any, candidates: Iterable[int] = range(2, 21), *, seed: int = 0) -> Choice:
    """Rank numbers of clusters for features z (N,D) float, by the sweep that this module explains.

    z: tensor or array whose rows have meaningful distances, such as a normalised embedding or
    features of an encoder; or a list of them, different features of the same images, over which
    the measures are averaged, so that one network's whims count less. At most 2,500 random rows
    are used. candidates: at least two different numbers from 2 to half the number of rows.
    Same z and seed, same answer. Raises ValueError: shapes, NaN, rows that are all the same,
    candidates. Chapter: your-images.
    """
    sets = [_checked(one) for one in (z if isinstance(z, list | tuple) else [z])]
    if not sets:
        raise ValueError("z must be features, or a list of at least one; got none")
    n = len(sets[0])
    if odd := [len(x) for x in sets if len(x) != n]:
        raise ValueError(f"z must be features of the same images; got {n} and {odd[0]} rows")
    ks, top = sorted(set(candidates)), min(n, SAMPLE) // 2
    if len(ks) < 2 or ks[0] < 2 or ks[-1] > top:
        raise ValueError(
            f"candidates must be two or more numbers between 2 and {top}, half of the rows; "
            f"got {ks}"
        )
    found = []
    for x in sets:
        rng = np.random.default_rng(seed)
        x = _reduced(x, rng)
        found.append((_sweep(x, ks, SUBSAMPLES, rng), _clouds(x, ks, rng)))
    table, cloud = (_joined(np.mean, list(tables)) for tables in zip(*found))
    score = np.mean([_scaled([getattr(row, c) for row in table]) for c in MEASURES[:3]], 0)
    rows = [replace(row, score=float(value)) for row, value in zip(table, score)]
    order = np.argsort(-score, kind="stable")
    ranked = [ks[j] for j in order]
    first, second = rows[order[0]], rows[order[1]]
    sure, sentence = _verdict(first, second, ranked, cloud, cloud[order[0]])
    return Choice(ranked[0], ranked, rows, sure, sentence, cloud)


def _checked(z: Any) -> np.ndarray:
    x = np.asarray(z.detach().cpu().float() if hasattr(z, "detach") else z, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"z must be (images, dimensions); got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("z must be finite; got NaN or infinity")
    return x


def _clouds(x: np.ndarray, ks: list[int], rng: np.random.Generator) -> list[Row]:
    """The sweep on a Gaussian cloud and on a box with the covariance of x; the larger values."""
    _, scale, axes = np.linalg.svd(x, full_matrices=False)
    # (D,D), from the identity's covariance to x's
    shape = scale[:, None] * axes / math.sqrt(len(x))
    normal, box = rng.normal(size=x.shape), rng.uniform(-math.sqrt(3), math.sqrt(3), x.shape)
    return _joined(max, [_sweep(c[:, : len(shape)] @ shape, ks, 2, rng) for c in (normal, box)])


def _joined(join: Callable[[list[float]], Any], tables: list[list[Row]]) -> list[Row]:
    """Several tables as one, with each measure at each k joined."""
    return [
        Row(rows[0].k, *(float(join([getattr(row, c) for row in rows])) for c in MEASURES))
        for rows in zip(*tables)
    ]


def _reduced(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A sample of the rows, on its first principal directions, with mean 0 and mean square 1."""
    from sklearn.decomposition import PCA

    if len(x) > SAMPLE:
        x = x[rng.choice(len(x), SAMPLE, replace=False)]
    x = x - x.mean(0)
    size = math.sqrt(float((x**2).sum(1).mean()))
    if size <= 1e-12 * (1 + float(np.abs(x).max())):
        raise ValueError("z must have rows that differ; they are all the same")
    if min(x.shape) > DIMENSIONS:
        x = PCA(DIMENSIONS, svd_solver="covariance_eigh").fit_transform(x)
    return x / size


def _sweep(x: np.ndarray, ks: list[int], subsamples: int, rng: np.random.Generator) -> list[Row]:
    """One row for each k, measured on `subsamples` random subsets of x (N,D)."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.stats import entropy
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    n = len(x)
    parts = [rng.choice(n, math.ceil(SHARE * n), replace=False) for _ in range(subsamples)]
    trees = [linkage(x[part], "ward") for part in parts]
    start, rows = int(rng.integers(2**31)), []
    for k in ks:
        labels = np.full((len(parts), n), -1)  # -1: not in this subsample
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fewer different rows than k
            for j, part in enumerate(parts):
                labels[j, part] = KMeans(k, n_init=3, random_state=start + j).fit_predict(x[part])
        spread = [silhouette_score(x[part], labels[j, part]) for j, part in enumerate(parts[:2])]
        bends = [_bend(tree[::-1, 2], k) for tree in trees]
        sizes = np.bincount(fcluster(trees[0], k, "maxclust"))
        balance = float(entropy(sizes)) / math.log(k)
        found = _agreement(labels), float(np.mean(spread)), float(np.mean(bends)), balance
        rows.append(Row(k, *found))
    return rows


def _agreement(labels: np.ndarray) -> float:
    """Mean adjusted Rand index of all pairs of rows, on the columns where neither is -1."""
    from sklearn.metrics import adjusted_rand_score

    found = []
    for i, a in enumerate(labels):
        for b in labels[:i]:
            both = (a >= 0) & (b >= 0)
            found.append(adjusted_rand_score(a[both], b[both]))
    return float(np.mean(found))


def _bend(heights: np.ndarray, k: int) -> float:
    """Log-ratio of the merge from k to k - 1 and the one before it; heights: the last merge first.

    Equal rows merge at no cost, which is bounded below by a thousandth of the last merge.
    """
    after, before = np.maximum(heights[[k - 2, k - 1]], heights[0] / 1000)
    return math.log(after / before)


def _scaled(values: list[float]) -> np.ndarray:
    low, high = min(values), max(values)
    return (np.array(values) - low) / max(high - low, 1e-12)


def _verdict(
    first: Row, second: Row, ranked: list[int], cloud: list[Row], same: Row
) -> tuple[Literal["clear", "weak", "no structure"], str]:
    """How clear the choice is, and the sentence; `same` is the clouds' row at the first's k."""
    numbers = (
        f"silhouette {first.silhouette:.2f}, {same.silhouette:.2f} in clouds without clusters; "
        f"resampled runs agree to {first.stability:.2f}"
    )
    if first.silhouette - same.silhouette < EXCESS:
        return "no structure", (
            "No number of clusters stands out: the features look like one cloud "
            f"({numbers} at k = {first.k}). Better features may help; "
            "else choose the number that suits your purpose."
        )
    doubts = []
    if first.score - second.score < LEAD:
        doubts.append(f"{second.k} fits nearly as well")
    if first.stability < 0.9:
        doubts.append("resampled runs disagree")
    if first.bend < max(row.bend for row in cloud):
        doubts.append("merging bends no more than in clouds without clusters")
    if ranked[0] in (cloud[0].k, cloud[-1].k):
        doubts.append("it is the smallest or largest candidate")
    if doubts:
        others = " or ".join(str(k) for k in ranked[1:3])
        return "weak", (
            f"Perhaps {first.k} clusters, else {others}; not sure, because "
            f"{' and '.join(doubts)} ({numbers})."
        )
    return "clear", (
        f"{first.k} groups stand out in these features ({numbers}). A class may be several groups: "
        "`dcl fit` with this number, and look at its report."
    )
