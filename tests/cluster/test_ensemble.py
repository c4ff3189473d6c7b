"""Consensus of partitions: slow loops, SciPy's linkage, scikit-learn's cut, all matchings."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.cluster import SpectralClustering

from dcl.cluster import ensemble
from dcl.cluster.ensemble import (
    agreement,
    align,
    average_linkage,
    coassociation,
    evidence_accumulation,
    majority,
    signatures,
    spectral,
)
from dcl.measure.metrics import ari
from dcl.train import seeded

CONSENSUS = (evidence_accumulation, spectral, majority)


def noisy(r=7, n=200, k=5, share=0.25, seed=0):
    """A truth (n,), and r partitions (r,n), each with numbers of its own, wrong of a share."""
    with seeded(seed):
        truth = torch.arange(n) % k
        rows = [
            torch.randperm(k)[torch.where(torch.rand(n) < share, torch.randint(k, (n,)), truth)]
            for _ in range(r)
        ]
    return truth, torch.stack(rows)


def same(a, b):
    return len(a) == len(b) and ari(a, b) == 1


# ---------------------------------------------------------------- signatures, co-association


def test_signatures_are_the_different_columns():
    rows = torch.tensor([[1, 0, 1, 1, 0, 1], [2, 2, 7, 2, 0, 2]])
    columns, inverse, counts = signatures(rows)
    assert columns.tolist() == [[0, 0, 1, 1], [0, 2, 2, 7]]
    assert inverse.tolist() == [2, 1, 3, 2, 0, 2] and counts.tolist() == [1, 1, 3, 1]
    assert torch.equal(columns[:, inverse], rows)


@pytest.mark.parametrize("r", [1, 3])
def test_coassociation_is_the_slow_loop(r):
    """Numbers with gaps, which mean nothing from row to row."""
    with seeded(r):
        rows = torch.tensor([0, 3, 4, 900])[torch.randint(4, (r, 17))]
    s = coassociation(rows)
    slow = [[sum(a == b for a, b in zip(i, j)) / r for j in rows.T.tolist()]
            for i in rows.T.tolist()]  # fmt: skip
    torch.testing.assert_close(s, torch.tensor(slow))
    assert s.dtype == torch.float32 and torch.equal(s.diag(), torch.ones(17))
    columns, inverse, _ = signatures(rows)
    torch.testing.assert_close(coassociation(columns)[inverse][:, inverse], s)


# ---------------------------------------------------------------- average linkage


@pytest.mark.parametrize("k", [1, 2, 5, 11, 12])
def test_average_linkage_of_counted_points_is_scipys_of_all_points(k):
    with seeded(k):
        points = torch.rand(12, 3, dtype=torch.float64).numpy()
        counts = torch.randint(1, 6, (12,)).numpy()
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    whole = np.repeat(np.arange(12), counts)
    tree = linkage(squareform(distance[whole][:, whole], checks=False), "average")
    found = average_linkage(distance.copy(), counts, k)
    assert same(found[whole], fcluster(tree, k, "maxclust")) and sorted({*found}) == [*range(k)]


def test_counts_decide_between_average_and_weighted_linkage():
    """A cluster's distance is that of its many points: with counts of 1 the other pair merges."""
    distance = np.array([[0, 1, 6, 9], [1, 0, 2, 9], [6, 2, 0, 3.5], [9, 9, 3.5, 0]])
    alone = average_linkage(distance.copy(), np.array([1, 1, 1, 1]), 2)
    many = average_linkage(distance.copy(), np.array([1, 9, 1, 1]), 2)
    assert alone.tolist() == [0, 0, 1, 1] and many.tolist() == [0, 0, 0, 1]


def test_ties_and_one_point():
    assert average_linkage(np.zeros((1, 1)), np.array([4]), 1).tolist() == [0]
    equal = 1 - np.eye(6)
    for k in range(1, 7):
        assert len({*average_linkage(equal.copy(), np.ones(6), k)}) == k


# ---------------------------------------------------------------- consensus


@pytest.mark.parametrize("consensus", CONSENSUS)
def test_consensus_is_better_than_its_members(consensus):
    truth, rows = noisy()
    found = consensus(rows, 5)
    assert found.dtype == torch.int64 and found.shape == truth.shape and found.max() == 4
    assert ari(truth, found) > 0.85 > 0.7 > max(ari(truth, row) for row in rows)
    shuffled = rows.flip(0, 1)  # neither rows nor images have an order, but that ties are decided
    assert ari(consensus(shuffled, 5).flip(0), found) > 0.92
    numbered = torch.stack([torch.tensor([4, 2, 3, 0, 1])[row] for row in rows])
    assert ari(consensus(numbered, 5), found) > 0.92


@pytest.mark.parametrize("consensus", CONSENSUS)
def test_one_partition_and_equal_ones_come_back(consensus):
    row = torch.tensor([2, 0, 1, 1, 2, 0, 0])
    assert same(consensus(row[None], 3), row)
    renamed = torch.tensor([5, 9, 7])[row]  # two names of the same clusters, which have gaps
    assert same(consensus(torch.stack([row, renamed, row]), 3), row)


@pytest.mark.parametrize("seed", range(4))
def test_evidence_and_cut_are_scipys_and_scikit_learns(seed):
    """On the whole co-association, where no tie decides: rows have 4, 5, ... clusters."""
    truth, rows = noisy(r=9, n=120, share=0.15, seed=seed)
    rows[0] = torch.where(rows[0] == 4, 0, rows[0])  # fewer
    rows[1] = torch.where(torch.arange(120) < 40, rows[1] + 5, rows[1])  # more
    s = coassociation(rows).numpy()
    tree = linkage(squareform(1 - s, checks=False), "average")
    assert same(evidence_accumulation(rows, 5), fcluster(tree, 5, "maxclust"))
    cut = SpectralClustering(5, affinity="precomputed", random_state=seed, n_init=10)
    assert same(spectral(rows, 5, seed=seed), cut.fit_predict(s))
    assert torch.equal(spectral(rows, 5, seed=seed), spectral(rows, 5, seed=seed))


def repeated(seed, counts):
    """14 different columns of 9 partitions, each counts[i] times: (9,14) and (9, sum of counts)."""
    with seeded(seed):
        columns = torch.randint(3, (9, 14)).unique(dim=1)
    return columns, columns.repeat_interleave(counts, dim=1)


@pytest.mark.parametrize("seed", [3, 19, 25])
def test_identical_points_count(seed):
    """Without their counts the signatures, or without weights the k-means, fall otherwise."""
    with seeded(seed):
        torch.randint(3, (9, 14))
        counts = torch.randint(1, 30, (14,))
    columns, whole = repeated(seed, counts)
    s = coassociation(whole).numpy()
    tree = fcluster(linkage(squareform(1 - s, checks=False), "average"), 3, "maxclust")
    cut = SpectralClustering(3, affinity="precomputed", random_state=0, n_init=10).fit_predict(s)
    for consensus, expected in ((evidence_accumulation, tree), (spectral, cut)):
        assert same(consensus(whole, 3), expected)
        assert ari(consensus(columns, 3).repeat_interleave(counts), expected) < 0.8


@pytest.mark.parametrize("seed", range(6))
def test_beyond_the_largest_the_commonest_decide_and_the_others_join(seed, monkeypatch):
    with seeded(seed):
        counts = (torch.randperm(14) + 1) ** 2
    columns, whole = repeated(seed, counts)
    monkeypatch.setattr(ensemble, "LARGEST", 9)
    found = evidence_accumulation(whole, 3)
    common = (counts > 25).repeat_interleave(counts)
    assert same(found[common], evidence_accumulation(whole[:, common], 3))
    s = coassociation(whole)
    for i in (~common).nonzero()[:, 0].tolist():
        mean = torch.stack([s[i, common & (found == c)].mean() for c in range(3)])
        torch.testing.assert_close(mean[found[i]], mean.max())
    with pytest.raises(ValueError, match="k must be between 1 and 9, .* got 10"):
        evidence_accumulation(whole, 10)


def test_many_signatures_of_equal_counts_are_drawn_fairly(monkeypatch):
    truth, rows = noisy(n=400, share=0.2)
    exact = evidence_accumulation(rows, 5)
    monkeypatch.setattr(ensemble, "LARGEST", len(signatures(rows)[2]) // 3)
    found = evidence_accumulation(rows, 5)
    assert ari(found, exact) > 0.9 and ari(truth, found) > 0.9


# ---------------------------------------------------------------- votes


def by_all_matchings(labels, reference, k):
    """The renumbering of labels that agrees on most images, over all there are."""
    own = sorted({*labels.tolist()})
    best = permutations(range(max(k, len(own))), len(own))
    score = [sum(p[own.index(a)] == b for a, b in zip(labels.tolist(), reference.tolist()))
             for p in best]  # fmt: skip
    return max(score)


@pytest.mark.parametrize("seed", range(6))
def test_align_finds_the_best_of_all_matchings(seed):
    with seeded(seed):
        labels, reference = torch.randint(4, (12,)), torch.randint(4, (12,))
    found = align(labels, reference, 4)
    assert (found == reference).sum() == by_all_matchings(labels, reference, 4)
    assert same(found, labels)  # one to one


def test_align_counts_what_images_weigh():
    labels, reference = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 0])
    assert align(labels, reference, 2).tolist() == [0, 0, 0, 1]
    assert align(labels, reference, 2, torch.tensor([1, 1, 1, 5])).tolist() == [1, 1, 1, 0]


def test_surplus_clusters_join_and_empty_ones_stay_empty():
    reference = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    labels = torch.tensor([8, 8, 8, 3, 5, 5, 6, 6])
    assert align(labels, reference, 3).tolist() == reference.tolist()
    assert align(torch.tensor([4] * 8), reference, 5).tolist() == [0] * 8
    assert align(reference, torch.tensor([3] * 8), 4).tolist()[:4] == [3] * 4


def test_majority_by_hand():
    a = torch.tensor([0, 0, 0, 1, 1, 1])
    b = torch.tensor([1, 1, 0, 0, 0, 0])  # a's numbers exchanged; image 2 elsewhere
    c = torch.tensor([0, 0, 0, 0, 1, 1])  # image 3 elsewhere
    assert majority(torch.stack([a, b, c]), 2).tolist() == a.tolist()
    assert agreement(torch.stack([a, b, c]), a).tolist() == pytest.approx(
        [1, 1, 2 / 3, 2 / 3, 1, 1]
    )
    assert majority(torch.stack([a, c]), 2).tolist() in (a.tolist(), c.tolist())  # a tie stays
    more = torch.tensor([0, 0, 2, 1, 1, 3])  # of four clusters, two of them left over
    assert majority(torch.stack([a, more, c]), 2).tolist() == a.tolist()


def slow_majority(rows, k):
    """Image by image, without signatures; each of the rows has k clusters."""

    def matched(vote):
        return torch.stack([align(row, vote, k) for row in rows])

    vote = max(rows, key=lambda row: (matched(row) == row).sum())
    while True:
        said, before = matched(vote), vote.clone()
        for i in range(len(vote)):
            count = [int((said[:, i] == c).sum()) for c in range(k)]
            if count[vote[i]] < max(count):
                vote[i] = count.index(max(count))
        if (matched(vote) == vote).sum() <= (said == before).sum():
            return before


@pytest.mark.parametrize("seed", range(12))
def test_majority_is_the_slow_one(seed):
    """Many images of few signatures, often a tie."""
    with seeded(seed):
        counts = torch.randint(1, 30, (14,))
    columns, whole = repeated(seed, counts)
    rows = whole[: 4 + seed % 3]
    assert torch.equal(majority(rows, 3), slow_majority(rows.clone(), 3))


@pytest.mark.parametrize("seed", range(5))
def test_majority_is_nearly_the_best_of_all_numberings(seed):
    """Few images, so that all numberings of all rows can be tried."""
    truth, rows = noisy(r=3, n=15, k=3, share=0.3, seed=seed)
    found = majority(rows, 3)
    votes = sum((align(row, found, 3) == found).sum() for row in rows)
    best = max(
        sum(max([p[a], q[b], r[c]].count(v) for v in range(3)) for a, b, c in rows.T.tolist())
        for p, q, r in product(permutations(range(3)), repeat=3)
    )
    assert best - 1 <= votes <= best  # a local best


def test_agreement_points_at_what_was_disturbed():
    truth, rows = noisy(r=5, share=0)
    rows[:3, :10] = (rows[:3, :10] + 1) % 5
    found = agreement(rows, truth)
    assert found.shape == (200,) and found[10:].tolist() == [1] * 190
    torch.testing.assert_close(found[:10], torch.full((10,), 0.4))
    more = torch.where(torch.arange(200) % 2 == 0, rows + 5, rows)  # every cluster in two
    torch.testing.assert_close(agreement(more, truth)[10:], torch.ones(190))


# ---------------------------------------------------------------- sizes and errors


def test_seventy_thousand_images_of_few_signatures_take_seconds():
    truth, rows = noisy(r=5, n=70_000, k=10, share=0.05)
    assert len(signatures(rows)[2]) < 5000
    for consensus in CONSENSUS:
        found = consensus(rows, 10)
        assert ari(truth, found) > 0.97
    assert agreement(rows, found).min() >= 0.2


GOOD = torch.tensor([[0, 1, 1], [0, 0, 1]])


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: coassociation(GOOD.float()), TypeError, "labelings must be a tensor of int64; "
         "got torch.float32"),
        (lambda: signatures([[0, 1]]), TypeError, "labelings must be a tensor of int64; got list"),
        (lambda: coassociation(GOOD[0]), ValueError, r"\(partitions, images\); got \(3,\)"),
        (lambda: signatures(GOOD[:0]), ValueError, r"\(partitions, images\); got \(0, 3\)"),
        (lambda: majority(GOOD - 1, 2), ValueError, "must be numbers from 0; got -1"),
        (lambda: evidence_accumulation(GOOD, 4), ValueError, "k must be between 1 and 3, .* got 4"),
        (lambda: spectral(GOOD, 0), ValueError, "k must be at least 1; got 0"),
        (lambda: spectral(GOOD, 2.0), TypeError, "k must be an integer; got 2.0"),
        (lambda: majority(GOOD, 3), ValueError, "a partition into k = 3 clusters.* got 2: evid"),
        (lambda: align(GOOD[0], GOOD[1], 1), ValueError, "reference must be numbers below k = 1"),
        (lambda: align(GOOD[0], GOOD[1, :2], 2), ValueError, r"reference must be \(partitions, 3"),
        (lambda: agreement(GOOD, GOOD[0, :2]), ValueError, r"reference must be \(partitions, 3\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
