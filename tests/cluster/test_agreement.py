"""Groups that labelings agree on, against the literal algorithm, image by image."""

import time

import pytest
import torch

from dcl.cluster.agreement import agreeing_groups, shared_numbering
from dcl.train import seeded


def literal(labelings, sure, k, low, high):
    """As the released code does it: lists of all neighbours of every image."""
    m, n = labelings.shape
    votes = [[int((labelings[:, i] == labelings[:, j]).sum()) for j in range(n)] for i in range(n)]
    near = [{j for j in range(n) if votes[i][j] > high} if sure[i] else set() for i in range(n)]
    found = [-1] * n
    for group in range(k):
        sizes = [len(s) for s in near]
        if not max(sizes):
            break
        members = near[sizes.index(max(sizes))]
        for j in members:
            found[j] = group
        for i in range(n):
            if any(votes[i][j] > low for j in members):
                near[i] = set()
        alive = {i for i in range(n) if near[i]}
        near = [s & alive for s in near]
    return found


def drawn(seed, m, n, k, same=0.7):
    """Noisy copies of one partition, so that groups exist, with identical images among them."""
    with seeded(seed):
        truth = torch.randint(k, (n,))
        noise = torch.randint(k, (m, n))
        labelings = torch.where(torch.rand(m, n) < same, truth, noise)
        labelings[:, n // 2 : n // 2 + 3] = labelings[:, :1]
        return labelings, torch.rand(n) < 0.6


CASES = [  # m, n, k, low, high
    (5, 60, 4, 1, 4),
    (5, 60, 4, 1, 3),
    (5, 60, 4, 0, 2),
    (4, 41, 3, 2, 2),
    (10, 50, 5, 2, 8),
    (3, 30, 9, 1, 2),
    (1, 30, 4, 0, 0),
]


@pytest.mark.parametrize("m,n,k,low,high", CASES)
def test_groups_equal_the_literal_loop(m, n, k, low, high):
    for seed in range(6):
        labelings, sure = drawn(seed, m, n, k)
        for s in (sure, torch.ones_like(sure)):
            got = agreeing_groups(labelings, s, k, low, high).tolist()
            assert got == literal(labelings, s, k, low, high)


def test_ties_go_to_the_first_image():
    labelings = torch.tensor([[3, 3, 0, 0, 1], [2, 2, 5, 5, 1]])
    sure = torch.ones(5, dtype=torch.bool)
    assert agreeing_groups(labelings, sure, 3, 0, 1).tolist() == [0, 0, 1, 1, 2]
    assert agreeing_groups(labelings.flip(1), sure, 3, 0, 1).tolist() == [2, 0, 0, 1, 1]


def test_copies_of_one_partition_give_its_largest_clusters_in_any_numbering():
    with seeded(0):
        labels = torch.cat([torch.full((n,), k) for k, n in enumerate((4, 9, 2, 6))])
        labels = labels[torch.randperm(21)]
    other = torch.tensor([7, 0, 3, 1])[labels]
    groups = agreeing_groups(torch.stack([labels, other]), torch.ones(21).bool(), 3, 0, 1)
    assert torch.equal(groups, torch.tensor([2, 0, -1, 1])[labels])


def test_an_image_that_is_not_sure_begins_no_group_and_is_in_the_first_only():
    labelings = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]]).repeat(3, 1)
    sure = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]).bool()
    assert agreeing_groups(labelings, sure, 3, 1, 2).tolist() == [0, 0, 0, -1, 1, -1, -1, -1]
    assert agreeing_groups(labelings, torch.zeros(8).bool(), 3, 1, 2).tolist() == [-1] * 8


def test_images_that_some_networks_put_to_a_group_leave_with_it():
    labelings = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 1, 1]])
    sure = torch.ones(5, dtype=torch.bool)
    assert agreeing_groups(labelings, sure, 3, 1, 2).tolist() == [0, 0, -1, 1, 1]
    assert agreeing_groups(labelings, sure, 3, 2, 2).tolist() == [0, 0, 2, 1, 1]


def test_seventy_thousand_images_take_seconds():
    with seeded(0):
        truth = torch.randint(10, (70_000,))
        noise = torch.randint(10, (10, 70_000))
        labelings = torch.where(torch.rand(10, 70_000) < 0.93, truth, noise)
        sure = torch.rand(70_000) < 0.8
    started = time.perf_counter()
    groups = agreeing_groups(labelings, sure, 10, 1, 9)
    assert time.perf_counter() - started < 60
    inside = groups >= 0
    assert groups.max() == 9 and inside.float().mean() > 0.3
    together = torch.zeros(10, 10).index_put_(
        (groups[inside], truth[inside]), torch.ones(()), accumulate=True
    )
    assert (together.amax(1) / together.sum(1)).min() > 0.99


def test_shared_numbering_is_that_of_the_last():
    with seeded(3):
        last = torch.randint(4, (200,))
        numbers = torch.stack([torch.randperm(4) for _ in range(3)])
    labelings = torch.cat([numbers.argsort(1)[:, last], last[None]])  # numbers undoes it
    labelings[0, :20] = 0  # some noise
    found = shared_numbering(labelings, 4)
    assert torch.equal(found, torch.cat([numbers, torch.arange(4)[None]]))


def test_a_cluster_without_images_takes_the_number_that_is_left():
    labelings = torch.tensor([[3, 3, 1, 1], [0, 0, 2, 2]])
    found = shared_numbering(labelings, 4)
    assert found[0, 3] == 0 and found[0, 1] == 2
    assert all(sorted(row) == [0, 1, 2, 3] for row in found.tolist())
    assert found[1].tolist() == [0, 1, 2, 3]
