import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_blobs

from dcl.measure.n_clusters import Row, _agreement, _bend, _verdict, choose_k


def blobs(k, d, n=400, std=1.0, seed=0):
    """k normal groups whose centres are far apart at any seed."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
    centers = 6 * np.concatenate([axes, -axes])[:k]
    return make_blobs(n, centers=centers, cluster_std=std, random_state=seed)[0]


@pytest.mark.parametrize(("k", "d"), [(3, 2), (4, 10), (6, 8)])
def test_it_finds_well_separated_groups(k, d):
    choice = choose_k(blobs(k, d), range(2, 9))
    assert choice.best == choice.ranked[0] == k
    assert choice.sure == "clear"
    assert choice.sentence.startswith(f"{k} groups stand out")
    row = choice.table[k - 2]
    assert row.stability > 0.99 and row.balance > 0.95 and row.score > 0.99
    assert row.bend > 1 and row.silhouette > 0.4


def test_the_order_of_the_candidates_and_the_scale_of_z_do_not_matter():
    z = blobs(4, 5)
    first, again = choose_k(z, range(2, 7)), choose_k(torch.from_numpy(z), [6, 5, 4, 3, 2, 2])
    moved = choose_k(1000 * z + 7, range(2, 7))
    assert first.ranked == again.ranked == moved.ranked
    assert first.ranked != sorted(first.ranked)
    assert [row.k for row in again.table] == [2, 3, 4, 5, 6]
    for a, b in zip(first.table, moved.table, strict=True):
        assert a.silhouette == pytest.approx(b.silhouette) and a.bend == pytest.approx(b.bend)


def test_same_seed_same_answer_and_nobody_elses_random_state():
    z = np.random.default_rng(0).normal(size=(200, 4))
    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    one, two, other = choose_k(z, [2, 3, 4]), choose_k(z, [2, 3, 4]), choose_k(z, [2, 3, 4], seed=1)
    assert one == two != other
    assert (np.random.get_state()[1] == state).all()
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize("shape", ["normal", "box", "needle", "sphere"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_cloud_has_no_structure(shape, seed):
    rng = np.random.default_rng(seed)
    z = {
        "normal": lambda: rng.normal(size=(500, 5)),
        "box": lambda: rng.random((500, 2)),
        "needle": lambda: rng.normal(size=(500, 3)) * [30, 1, 1],
        "sphere": lambda: (lambda x: x / np.linalg.norm(x, axis=1, keepdims=True))(
            rng.normal(size=(500, 20))
        ),
    }[shape]()
    choice = choose_k(z, range(2, 8), seed=seed)
    assert choice.sure == "no structure"
    assert "like one cloud" in choice.sentence


def test_digits_in_their_pixels():
    x = load_digits().data[:1000]
    choice = choose_k(x, range(6, 14))
    assert 10 in choice.ranked[:3]
    assert choice.sure != "no structure"


def test_several_features_of_the_same_images_are_averaged():
    a, b = blobs(3, 4), blobs(5, 6)
    both = choose_k([a, b], range(2, 7))
    one, two = choose_k(a, range(2, 7)), choose_k(b, range(2, 7))
    assert set(both.ranked[:2]) == {3, 5}
    for x, y, z in zip(both.table, one.table, two.table, strict=True):
        assert x.silhouette == pytest.approx((y.silhouette + z.silhouette) / 2, abs=0.03)
    assert choose_k([a], range(2, 7)) == one
    with pytest.raises(ValueError, match="the same images; got 400 and 300 rows"):
        choose_k([a, b[:300]], range(2, 7))


def test_agreement_by_hand():
    a = [0, 0, 1, 1, -1]
    assert _agreement(np.array([a, [1, 1, 0, 0, 3]])) == 1  # names of clusters do not count
    # two pairs against two others: no pair in common, as bad as can be for four points
    assert _agreement(np.array([a, [0, 1, 0, 1, 1]])) == pytest.approx(-0.5)
    assert _agreement(np.array([a, [5, 5, 6, 6, 0], [0, 1, 0, 1, -1]])) == pytest.approx(0)


def test_bend_by_hand():
    heights = np.array([8.0, 4.0, 1.0, 0.0, 0.0])  # merges to 1, 2, 3, 4, 5 clusters
    assert _bend(heights, 2) == pytest.approx(math.log(2))  # 2 -> 1 costs 8, 3 -> 2 has cost 4
    assert _bend(heights, 3) == pytest.approx(math.log(4))
    assert _bend(heights, 4) == pytest.approx(math.log(1 / 0.008))  # bounded
    assert _bend(heights, 5) == 0


def test_copies_of_a_few_images():
    z = np.random.default_rng(0).normal(size=(4, 3))[np.arange(200) % 4]
    choice = choose_k(z, range(2, 8))
    assert choice.best == 4 and choice.table[2].silhouette == pytest.approx(1)


def test_uneven_groups_and_a_sample_of_many_rows():
    sizes = np.repeat([0, 1, 2], [2400, 450, 150])
    z = 8 * np.eye(3)[sizes] + np.random.default_rng(0).normal(size=(3000, 3))
    choice = choose_k(z, [2, 3, 4])
    assert choice.best == 3
    share = np.array([0.8, 0.15, 0.05])
    assert choice.table[1].balance == pytest.approx(
        -(share * np.log(share)).sum() / math.log(3), abs=0.05
    )


def row(k=5, stability=0.99, silhouette=0.4, bend=0.5, score=0.9):
    return Row(k, stability, silhouette, bend, 1.0, score)


def test_every_doubt_is_said():
    cloud = [row(2, 0.9, 0.1, 0.2, 0), row(5, 0.5, 0.1, 0.2, 0), row(9, 0.2, 0.1, 0.1, 0)]

    def verdict(first, second_score=0.5, best=5):
        return _verdict(first, row(6, score=second_score), [best, 6, 4], cloud, cloud[1])

    assert verdict(row())[0] == "clear"
    for first, second, best, words in (
        (row(), 0.85, 5, "6 fits nearly as well"),
        (row(stability=0.8), 0.5, 5, "resampled runs disagree"),
        (row(bend=0.19), 0.5, 5, "merging bends no more than in clouds"),
        (row(), 0.5, 9, "it is the smallest or largest candidate"),
    ):
        sure, sentence = verdict(first, second, best)
        assert sure == "weak" and words in sentence and "else 6 or 4" in sentence
        assert sentence.count(" and ") == 0  # no other doubt
    assert verdict(row(silhouette=0.12))[0] == "no structure"


def test_bad_input():
    good = np.random.default_rng(0).normal(size=(40, 3))
    for z, words in (
        (good[0], r"z must be \(images, dimensions\); got shape \(3,\)"),
        (np.full((40, 3), np.nan), "finite"),
        (np.ones((40, 3)), "all the same"),
        ([], "at least one"),
    ):
        with pytest.raises(ValueError, match=words):
            choose_k(z, [2, 3])
    for candidates in ([], [3], [1, 2], [2, 21]):
        with pytest.raises(ValueError, match=r"two or more numbers between 2 and 20.*got \["):
            choose_k(good, candidates)
