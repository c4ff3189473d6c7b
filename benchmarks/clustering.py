"""k-means, neighbours, Sinkhorn and accuracy on the CPU: dcl against faiss, scikit-learn, POT.

k-means: same rows, same start centroids, 20 iterations and a last assignment for each; the
objective is computed for all by the same lines. Then as users call it: k-means++, ten starts,
each library's own rule for stopping, other seeds in each round. Neighbours: exact, k = 20, among
the rows themselves. Sinkhorn: POT gets float64 arrays, uniform marginals and the same number of
iterations. Accuracy: the Hungarian matching is scipy's for all; they differ in the table.
"""

import os
from collections.abc import Callable
from functools import partial
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import (
    WALL,
    Claim,
    Outcome,
    Times,
    Work,
    cpu_times,
    peer,
    progress,
    ratio,
    rows,
    threads,
    wall_times,
)
from dcl.cluster.kmeans import kmeans
from dcl.cluster.neighbors import nearest
from dcl.cluster.sinkhorn import sinkhorn
from dcl.measure.metrics import accuracy

KMEANS = [(10, 50_000, 128), (100, 50_000, 128), (1000, 20_000, 128)]  # K, N, D
ITERATIONS = 20
STARTS = [("digits", 1797, 64), ("made", 10_000, 50)]
NEIGHBOURS = [("cosine", 10_000, 128), ("l2", 10_000, 128)]
NEAREST = 20
SINKHORN = [(512, 300), (512, 3000), (2048, 3000)]  # images, prototypes
EPSILON, SWAV_ITERATIONS, CONVERGED = 0.05, 3, 500
ACCURACY = [(10, 100_000), (100, 100_000), (1000, 1_000_000)]  # K, N
OURS, FAISS, SKLEARN = "dcl", "faiss", "scikit-learn"


def points(n: int, d: int, groups: int = 50) -> Tensor:
    """Rows (n,d) of overlapping groups with a spectrum like that of features."""
    random = torch.Generator().manual_seed(0)
    scale = torch.arange(1, d + 1) ** -0.5
    centres = torch.randn(groups, d, generator=random)
    at = torch.randint(groups, (n,), generator=random)
    return (centres[at] + torch.randn(n, d, generator=random)) * scale


def objective(x: Tensor, centroids: Tensor) -> float:
    """Sum of squared distances to the nearest centroid, in float64."""
    c = centroids.double()
    total = 0.0
    for block in x.double().split(2**22 // len(c)):
        total += float((torch.cdist(block, c).amin(1) ** 2).sum())
    return total


def lloyds(x: Tensor, k: int) -> dict[str, Callable[[], Tensor]]:
    """The same k-means by each library; each call returns the centroids."""
    from sklearn.cluster import KMeans

    start = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:k]]
    array, c = x.numpy(), start.numpy()

    def by_faiss() -> Tensor:
        import faiss

        every = {"min_points_per_centroid": 1, "max_points_per_centroid": len(x)}
        run = faiss.Kmeans(x.shape[1], k, niter=ITERATIONS, **every)
        run.train(array, init_centroids=c)
        run.assign(array)  # the others return labels too
        return torch.from_numpy(run.centroids)

    def by_sklearn() -> Tensor:
        run = KMeans(k, init=c, n_init=1, max_iter=ITERATIONS, tol=0, algorithm="lloyd")
        return torch.from_numpy(run.fit(array).cluster_centers_)

    def ours() -> Tensor:
        return kmeans(x, k, iterations=ITERATIONS, init=start).centroids

    return {OURS: ours, FAISS: by_faiss, SKLEARN: by_sklearn}


def starts(x: Tensor, k: int = 10) -> tuple[Work, dict[str, list[Tensor]]]:
    """k-means with ten starts as users call it, and what the calls will have found."""
    from sklearn.cluster import KMeans

    array, seeds = x.numpy(), count()
    found: dict[str, list[Tensor]] = {OURS: [], SKLEARN: []}

    def ours() -> None:
        torch.manual_seed(next(seeds))
        found[OURS].append(kmeans(x, k, n_init=10).centroids)

    def by_sklearn() -> None:
        run = KMeans(k, n_init=10, random_state=next(seeds)).fit(array)
        found[SKLEARN].append(torch.from_numpy(run.cluster_centers_))

    return {OURS: ours, SKLEARN: by_sklearn}, found


def searches(x: Tensor, metric: str) -> dict[str, Callable[[], Tensor]]:
    """The same neighbours by each library, from rows as they are to indices."""
    from sklearn.neighbors import NearestNeighbors

    array, name = x.numpy(), {"l2": "euclidean"}.get(metric, metric)

    def by_faiss() -> Tensor:
        import faiss

        keys = array
        if metric == "cosine":
            keys = array / np.linalg.norm(array, axis=1, keepdims=True)
        index = (faiss.IndexFlatIP if metric == "cosine" else faiss.IndexFlatL2)(x.shape[1])
        index.add(keys)
        return torch.from_numpy(index.search(keys, NEAREST)[1])

    def by_sklearn() -> Tensor:
        search = NearestNeighbors(n_neighbors=NEAREST, algorithm="brute", metric=name).fit(array)
        return torch.from_numpy(search.kneighbors(array, return_distance=False))

    return {
        OURS: partial(nearest, x, x, NEAREST, metric=metric),
        FAISS: by_faiss,
        SKLEARN: by_sklearn,
    }


def same(a: Tensor, b: Tensor) -> float:
    """Share of the neighbours in a that b has too."""
    return float((a[:, :, None] == b[:, None, :]).any(2).float().mean())


def plans(scores: Tensor, iterations: int) -> dict[str, Callable[[], Tensor]]:
    """The same balanced assignment by POT in both its forms and by dcl; rows sum to 1."""
    import ot

    b, k = scores.shape
    cost, left, right = -scores.double().numpy(), np.full(b, 1 / b), np.full(k, 1 / k)
    options = {"reg": EPSILON, "numItermax": iterations, "stopThr": 0, "warn": False}

    def by_pot(method: str) -> Tensor:
        return torch.from_numpy(b * ot.sinkhorn(left, right, cost, method=method, **options))

    return {
        OURS: partial(sinkhorn, scores, EPSILON, iterations),
        "POT, in logarithms": partial(by_pot, "sinkhorn_log"),
        "POT, plain": partial(by_pot, "sinkhorn"),
    }


def counted_by_loop(labels: np.ndarray, clusters: np.ndarray, k: int) -> float:
    """Accuracy with a table counted image by image, as in the code of many papers."""
    from scipy.optimize import linear_sum_assignment

    table = np.zeros((k, k), dtype=np.int64)
    for i in range(len(labels)):
        table[labels[i], clusters[i]] += 1
    return table[linear_sum_assignment(table, maximize=True)].sum() / len(labels)


def run(rounds: int) -> Outcome:
    """Measure all on one thread; k-means and neighbours on two as well, by the clock."""
    few = min(rounds, max(3, rounds // 3))  # for what takes seconds
    settings: dict[str, object] = {"rounds": few, "iterations": ITERATIONS, "epsilon": EPSILON}
    outcome = Outcome([], [], settings, [])
    if peer("faiss", outcome.remarks) is None:
        outcome.remarks.append("k-means and neighbours have no bound to keep without faiss")
    if (os.cpu_count() or 1) < 2:
        outcome.remarks.append("there is one core: nothing on two threads")
    measure_kmeans(outcome, few)
    measure_starts(outcome, few)
    measure_neighbours(outcome, few)
    if peer("ot", outcome.remarks, "POT") is not None:
        measure_sinkhorn(outcome, few)
    measure_accuracy(outcome, few)
    return outcome


def measure(outcome: Outcome, title: str, work: Work, rounds: int) -> Times:
    """CPU time of the candidates on one thread, as a table of the outcome."""
    progress(title)
    with threads(1):
        times = cpu_times(work, rounds)
    outcome.rows.extend(rows(times, title))
    return times


def beside_faiss(outcome: Outcome, title: str, work: Work, times: Times, rounds: int) -> None:
    """The bound for dcl and faiss, on one thread and, by the clock, on two."""
    if FAISS not in work:
        return
    text = "time, dcl / faiss, one thread"
    outcome.claims.append(ratio(text, times[OURS], times[FAISS], 1.0, group=title))
    if (os.cpu_count() or 1) < 2:
        return
    with threads(2):
        wall, cpu = wall_times({name: work[name] for name in (OURS, FAISS)}, rounds)
    outcome.rows.extend(rows(wall, title, cpu, f"{WALL}, two threads"))
    text = "time, dcl / faiss, two threads, by the clock"
    outcome.claims.append(ratio(text, wall[OURS], wall[FAISS], 1.0, group=title))


def present(work: Work) -> Work:
    """The candidates without faiss where it is not installed."""
    return {name: w for name, w in work.items() if name != FAISS or peer("faiss", [])}


def beside(outcome: Outcome, title: str, times: Times) -> None:
    """The time of dcl over that of each other candidate, without a bound."""
    for name in list(times)[1:]:
        claim = ratio(f"time, dcl / {name}", times[OURS], times[name], group=title)
        outcome.claims.append(claim)


def measure_kmeans(outcome: Outcome, rounds: int) -> None:
    """The same iterations from the same start."""
    for k, n, d in KMEANS:
        title, x = f"k-means, K = {k:,}, {n:,} x {d}", points(n, d)
        work = present(lloyds(x, k))
        times = measure(outcome, title, work, rounds)
        beside_faiss(outcome, title, work, times, rounds)
        with threads(1):
            found = {name: objective(x, call()) for name, call in work.items()}
        for name in list(work)[1:]:
            text, value = f"objective, dcl / {name}", round(found[OURS] / found[name], 6)
            bound = 1.01 if name == FAISS else None
            outcome.claims.append(Claim(text, value, bound, group=title))


def measure_starts(outcome: Outcome, rounds: int) -> None:
    """Ten starts, as users call it."""
    from sklearn.datasets import load_digits

    for name, n, d in STARTS:
        x = torch.from_numpy(load_digits().data).float() if name == "digits" else points(n, d)
        title = f"k-means as called, ten starts, K = 10, {n:,} x {d} ({name})"
        work, found = starts(x)
        times = measure(outcome, title, work, rounds)
        beside(outcome, title, times)
        ours, theirs = ([objective(x, c) for c in found[who]] for who in (OURS, SKLEARN))
        least = min(len(ours), len(theirs))
        text = "objective, dcl / scikit-learn"
        outcome.claims.append(ratio(text, ours[:least], theirs[:least], 1.01, group=title))


def measure_neighbours(outcome: Outcome, rounds: int) -> None:
    """Exact neighbours of all rows among themselves."""
    for metric, n, d in NEIGHBOURS:
        title, x = f"{NEAREST} neighbours, {metric}, {n:,} x {d}", points(n, d)
        work = present(searches(x, metric))
        times = measure(outcome, title, work, rounds)
        beside_faiss(outcome, title, work, times, rounds)
        with threads(1):
            found = {name: call() for name, call in work.items()}
        for name in list(work)[1:]:
            share = round(same(found[OURS], found[name]), 6)
            outcome.claims.append(Claim(f"share that {name} names too", share, group=title))


def measure_sinkhorn(outcome: Outcome, rounds: int) -> None:
    """SwAV's three iterations; do the codes agree, there and where they no longer move?"""
    for b, k in SINKHORN:
        title = f"Sinkhorn, {b} images, {k:,} prototypes"
        random = torch.Generator().manual_seed(0)
        z, c = torch.randn(b, 128, generator=random), torch.randn(k, 128, generator=random)
        scores = F.normalize(z) @ F.normalize(c).T
        times = measure(outcome, title, plans(scores, SWAV_ITERATIONS), rounds)
        beside(outcome, title, times)
        ends = [SWAV_ITERATIONS] + [CONVERGED] * ((b, k) == min(SINKHORN))
        for iterations in ends:
            with threads(1):
                ours, *others = (call() for call in plans(scores, iterations).values())
            apart = max(float((ours - plan).abs().max()) for plan in others)
            text = f"largest difference of a code, {iterations} iterations"
            outcome.claims.append(Claim(text, apart, group=title))


def measure_accuracy(outcome: Outcome, rounds: int) -> None:
    """The accuracy of half-right clusters; both ways must give one number."""
    for k, n in ACCURACY:
        title, random = f"accuracy, K = {k:,}, {n:,} images", np.random.default_rng(0)
        labels = random.integers(k, size=n)
        clusters = np.where(random.random(n) < 0.5, (labels + 1) % k, random.integers(k, size=n))
        work: Work = {
            OURS: partial(accuracy, labels, clusters),
            "counted image by image": partial(counted_by_loop, labels, clusters, k),
        }
        found = [call() for call in work.values()]
        if len(set(found)) > 1:
            raise ValueError(f"the accuracies must be equal; got {found}")
        times = measure(outcome, title, work, rounds)
        beside(outcome, title, times)
