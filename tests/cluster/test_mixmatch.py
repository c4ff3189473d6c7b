"""MixMatch and label smoothing by hand."""

import pytest
import torch

from dcl.cluster.mixmatch import mean_where, mix, sharpen, smoothed, soft_cross_entropy
from dcl.train import seeded


def test_sharpening_by_hand():
    p = torch.tensor([[0.6, 0.3, 0.1], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    wanted = torch.tensor([[36 / 46, 9 / 46, 1 / 46], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(sharpen(p), wanted.double())
    torch.testing.assert_close(sharpen(p, 1.0), p)


def test_smoothing_by_hand():
    found = smoothed(torch.tensor([2, 0]), 3, 0.5)
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]]))
    torch.testing.assert_close(smoothed(torch.tensor([1]), 3, 0.0), torch.tensor([[0.0, 1, 0]]))
    # torch's spreads its share over the label, too
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    theirs = torch.nn.functional.cross_entropy(
        logits, torch.tensor([2, 0]), label_smoothing=0.75, reduction="none"
    )
    torch.testing.assert_close(soft_cross_entropy(logits, found), theirs)


def test_the_least_of_a_smoothed_cross_entropy():
    goal = smoothed(torch.tensor([3]), 10, 0.5)
    assert soft_cross_entropy(goal.log(), goal).item() == pytest.approx(1.7918, abs=1e-4)


@pytest.mark.parametrize("n", [5, 1])
def test_a_row_is_mixed_with_one_other_and_keeps_the_larger_share(n):
    with seeded(3):
        x = torch.arange(n).float()[:, None, None, None].expand(n, 1, 2, 2)
        t = torch.eye(n)
        shares = []
        for _ in range(30):
            z, s = mix(x, t, 0.75)
            torch.testing.assert_close(s.sum(1), torch.ones(n))
            own = s.diagonal()
            assert (own >= 0.5 - 1e-6).all() and ((s > 1e-6).sum(1) <= 2).all()
            torch.testing.assert_close(z[:, 0, 0, 0], s @ torch.arange(n).float())
            assert ((s > 1e-6).sum(0) <= 2).all()  # each is the partner of one
            moved = own[own < 1 - 1e-6]
            torch.testing.assert_close(moved, own.min().expand(len(moved)))  # one share for all
            shares.append(own.min().item())
    assert n == 1 or max(shares) > 0.8 > min(shares)
    assert mix(x, t, 0.0)[0] is x and mix(x, t, 0.0)[1] is t


def test_a_mean_of_nothing_is_zero_with_a_graph():
    x = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    assert mean_where(x, torch.tensor([True, False, True])).item() == 3.5
    none = mean_where(x, torch.zeros(3).bool())
    (gradient,) = torch.autograd.grad(none, x)
    assert none.item() == 0 and not gradient.any()
