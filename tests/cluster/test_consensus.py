"""The consensus of two clusterings by hand and by slow loops, and the memory of clusters."""

import pytest
import torch
from torch.nn import functional as F

from dcl.cluster.consensus import Memory, centres, consensus, former, refined
from dcl.train import seeded
from processes import in_processes


def test_consensus_by_hand():
    # old a: images 0 1 2, b: 3 4; new: {0 1} {2 3 4}; IoU a: 2/3, 1/5; b: 0, 2/3
    before, now = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 1])
    expected = torch.tensor([[10 / 13, 3 / 13], [0, 1]])
    torch.testing.assert_close(consensus(before, now, 2, 2), expected)
    # by columns it would be other labels: the new cluster 1 takes most of b
    assert consensus(before, now, 2, 2)[:, 1].sum() > 1


def slow(before, now, k_before, k_now):
    rows = []
    for a in range(k_before):
        row = []
        for b in range(k_now):
            old = {n for n in range(len(before)) if before[n] == a}
            new = {n for n in range(len(now)) if now[n] == b}
            row.append(len(old & new) / max(len(old | new), 1))
        rows.append([v / sum(row) if sum(row) else 0.0 for v in row])
    return torch.tensor(rows)


@pytest.mark.parametrize("k_before, k_now", [(7, 4), (3, 9), (1, 5), (6, 1), (40, 30)])
@pytest.mark.parametrize("outliers", [False, True])
def test_consensus_is_the_slow_loop(k_before, k_now, outliers):
    """Also more clusters than images, and empty ones, as the last always is."""
    with seeded(k_before):
        before = torch.randint(-outliers, max(k_before - 1, 1), (31,))
        now = torch.randint(-outliers, max(k_now - 1, 1), (31,))
    matrix = consensus(before, now, k_before, k_now)
    assert matrix.shape == (k_before, k_now) and matrix.dtype == torch.float32
    torch.testing.assert_close(matrix, slow(before.tolist(), now.tolist(), k_before, k_now))
    occurs = torch.tensor([bool(((before == a) & (now >= 0)).any()) for a in range(k_before)])
    torch.testing.assert_close(matrix.sum(1), occurs.float())


def test_a_cluster_of_which_only_outliers_are_left_counts_them_in_the_union_and_has_a_zero_row():
    before = torch.tensor([0, 0, 0, 0, 1, 1])
    now = torch.tensor([0, -1, -1, 1, -1, -1])
    matrix = consensus(before, now, 2, 2)
    assert matrix.tolist() == [[0.5, 0.5], [0, 0]]


def test_renumbering_the_clusters_renumbers_the_matrix():
    with seeded(0):
        before, now = torch.randint(5, (60,)), torch.randint(8, (60,))
        a, b = torch.randperm(5), torch.randperm(8)
    torch.testing.assert_close(
        consensus(a[before], b[now], 5, 8)[a][:, b], consensus(before, now, 5, 8)
    )


def test_centres_are_means_of_length_1_and_outliers_are_in_none():
    f = F.normalize(torch.tensor([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]]), dim=1)
    found = centres(f, torch.tensor([0, 0, 2, -1]), 3)
    mean = torch.tensor([0.3, 0.9]) / 0.9**0.5
    torch.testing.assert_close(found, torch.stack([mean, torch.zeros(2), torch.tensor([1.0, 0])]))


def test_former_by_hand():
    f, old = torch.tensor([[1.0, 0.0]] * 3), torch.eye(2)
    p = former(f, old, torch.tensor([1, 0, -1]), sharpness=2.0, share=0.9)
    near = 1 / (1 + torch.tensor(-2.0).exp())  # softmax of (2, 0)
    own = torch.stack([near, 1 - near])
    expected = torch.stack([0.1 * own + torch.tensor([0, 0.9]),
                            0.1 * own + torch.tensor([0.9, 0]), own])  # fmt: skip
    torch.testing.assert_close(p, expected)
    torch.testing.assert_close(former(f, old, torch.tensor([1, 0, -1]), 2.0, 0.0), own.expand(3, 2))


def test_refined_is_a_product_that_vanished_clusters_have_no_part_in():
    p = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.0, 0.5], [0.0, 0.0, 1.0]])
    matrix = torch.tensor([[0.4, 0.6], [1.0, 0.0], [0.0, 0.0]])  # old cluster 2 is gone
    s = refined(p, matrix, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(s, torch.tensor([[0.85, 0.15], [0.4, 0.6], [0.0, 1.0]]))


# ---- the memory


def by_loop(rows, i, z, keep):
    rows = rows.clone()
    for k, vector in zip(i.tolist(), z):
        mixed = keep * rows[k] + (1 - keep) * vector
        rows[k] = mixed / mixed.norm()
    return rows


def draws():
    with seeded(5):
        i = torch.randint(4, (11,))  # each row several times
        z = F.normalize(torch.randn(11, 6), dim=1)
        memory = Memory(5, 6, keep=0.2)
    return memory, i, z


def test_memory_moves_image_by_image():
    memory, i, z = draws()
    expected = by_loop(memory.rows, i, z, 0.2)
    before = memory.rows.clone()
    memory.update(i, z)
    torch.testing.assert_close(memory.rows, expected)
    torch.testing.assert_close(memory.rows.norm(dim=1), torch.ones(5))
    assert torch.equal(memory.rows[4], before[4])  # nobody's
    backwards, _, _ = draws()
    backwards.update(i.flip(0), z.flip(0))
    assert (backwards.rows - memory.rows).abs().max() > 0.1  # the last image has the last word
    assert not memory.state_dict()


def shared(rank, world):
    memory, i, z = draws()
    memory.update(i[rank::world], z[rank::world])
    return memory.rows


@pytest.mark.parametrize("world", [2, 3])
def test_the_order_of_the_batch_holds_over_processes(world, tmp_path):
    memory, i, z = draws()
    memory.update(i, z)
    for rows in in_processes(shared, (world,), tmp_path, world):
        assert torch.equal(rows, memory.rows)
