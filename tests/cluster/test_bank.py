"""The memory bank, by hand, and the same in every process."""

import math

import pytest
import torch
from torch.nn import functional as F

from dcl.cluster.bank import Bank
from dcl.train import seeded
from processes import in_processes


def bank(n=7, dim=3, keep=0.5):
    with seeded(0):
        return Bank(n, dim, keep)


def test_rows_start_apart_with_length_one():
    one = bank(500, 16)
    torch.testing.assert_close(one.rows.norm(dim=1), torch.ones(500))
    assert float(one.rows.mean(0).norm()) < 0.2 and not list(one.parameters())


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9])
def test_a_row_moves_towards_its_image_and_stays_on_the_sphere(keep):
    one = bank(keep=keep)
    before = one.rows.clone()
    with seeded(1):
        z = F.normalize(torch.randn(2, 3), dim=1).requires_grad_()
    one.update(torch.tensor([5, 2]), z)
    for row, new in ((5, z[0]), (2, z[1])):
        pairs = zip(before[row].tolist(), new.tolist())
        moved = [keep * a + (1 - keep) * b for a, b in pairs]
        length = sum(x * x for x in moved) ** 0.5
        torch.testing.assert_close(one.rows[row], torch.tensor([x / length for x in moved]))
    others = [0, 1, 3, 4, 6]
    assert torch.equal(one.rows[others], before[others]) and not one.rows.requires_grad


def test_scores_are_inner_products_and_reach_the_embeddings_alone():
    one = bank()
    z = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        scores = one.scores(z)
    assert scores.shape == (2, 7) and scores.dtype == torch.float32
    by_hand = [[sum(a * b for a, b in zip(x, v)) for v in one.rows.tolist()] for x in z.tolist()]
    torch.testing.assert_close(scores, torch.tensor(by_hand))
    scores[1, 4].backward()
    assert not z.grad[0].any() and torch.equal(z.grad[1], one.rows[4])


def test_entropy_is_that_of_the_softmax_over_all_rows(monkeypatch):
    one = bank(9, 4)
    wanted = []
    for row in one.rows:
        e = [math.exp(float(row @ other) / 0.2) for other in one.rows]
        p = [value / sum(e) for value in e]
        wanted.append(-sum(value * math.log(value) for value in p))
    torch.testing.assert_close(one.entropy(0.2), torch.tensor(wanted))
    monkeypatch.setattr("dcl.cluster.bank.BUDGET", 20)  # blocks of two rows, and one of one
    torch.testing.assert_close(one.entropy(0.2), torch.tensor(wanted))
    one.rows.copy_(torch.ones(9, 4) / 2)
    torch.testing.assert_close(one.entropy(0.2), torch.full((9,), math.log(9)))


def share(rank, i, z, size):
    """The bank after two updates, each process with its part of the batch."""
    one = bank()
    for step in (0, 3):
        rows = (i + step) % 7
        one.update(rows[rank::size], z[rank::size].roll(step, 1))
    return torch.cat([one.rows, one.entropy(0.2)[:, None]], 1)


def test_every_process_holds_the_rows_of_all(tmp_path):
    with seeded(2):
        i, z = torch.randperm(7)[:5], F.normalize(torch.randn(5, 3), dim=1)
    alone = share(0, i, z, 1)
    assert not torch.equal(alone[:, :3], bank().rows)
    for rows in in_processes(share, (i, z, 3), tmp_path, 3):
        assert torch.equal(rows[:, :3], alone[:, :3])
        torch.testing.assert_close(rows[:, 3], alone[:, 3])


def test_it_goes_on_from_its_state():
    one, copy = bank(), Bank(7, 3)
    one.update(torch.tensor([1]), torch.ones(1, 3))
    assert not torch.equal(one.rows, copy.rows)
    copy.load_state_dict(one.state_dict())
    assert torch.equal(one.rows, copy.rows)
