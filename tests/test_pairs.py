"""The loss of pairs by hand, by loop, in float64, and with pairs left out."""

import math

import pytest
import torch
from torch.nn import functional as F

from dcl.cluster.pairwise import pair_loss
from dcl.train import seeded


def test_pair_loss_by_hand():
    a = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    b = torch.tensor([[0.7, 0.3], [0.4, 0.6]])
    t = torch.tensor([[1.0, 0.0], [0.25, 1.0]])
    p = [[0.66, 0.42], [0.38, 0.56]]
    expected = -(
        math.log(p[0][0])
        + math.log(1 - p[0][1])
        + 0.25 * math.log(p[1][0])
        + 0.75 * math.log(1 - p[1][0])
        + math.log(p[1][1])
    )
    assert pair_loss(a, b, t).item() == pytest.approx(expected / 4, rel=1e-5)


def test_pair_loss_pairs_each_mixture_with_each_clean_image():
    with seeded(0):
        a, b = torch.rand(5, 3).softmax(1), torch.rand(5, 3).softmax(1)
        t = torch.rand(5, 5)
    rows = [
        F.binary_cross_entropy((a[i] * b[j]).sum(), t[i, j]) for i in range(5) for j in range(5)
    ]
    torch.testing.assert_close(pair_loss(a, b, t), torch.stack(rows).mean())
    assert not torch.isclose(pair_loss(a, b, t.T), pair_loss(a, b, t), rtol=1e-4)


def test_pair_loss_gradient_in_float64():
    with seeded(0):
        a, b = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        t = torch.rand(4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: pair_loss(a.softmax(1), b.softmax(1), t), (a, b))


def test_pair_loss_survives_a_probability_above_one():
    one = torch.tensor([[1 + 3e-7, 0.0]])
    zero = torch.zeros(1, 1)
    released = -((1 - zero) * (1 - one @ one.T + 1e-7).log()).mean()
    assert released.isnan()
    assert pair_loss(one, one, zero).item() == pytest.approx(-math.log(1e-7), rel=1e-4)
    sure = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = pair_loss(sure, torch.tensor([[0.0, 1.0]]), torch.ones(1, 1))
    loss.backward()
    assert loss.isfinite() and sure.grad.isfinite().all()


def test_a_pair_of_weight_zero_is_left_out():
    with seeded(2):
        a, b = (F.normalize(torch.rand(n, 3), dim=1).requires_grad_() for n in (5, 7))
        t, chosen = (torch.rand(5, 7) < 0.5).float(), (torch.rand(5, 7) < 0.4).float()
    chosen[2], chosen[:, 3] = 0, 0  # these rows are in no pair
    rows = [
        F.binary_cross_entropy((a[i] * b[j]).sum(), t[i, j])
        for i in range(5)
        for j in range(7)
        if chosen[i, j]
    ]
    loss = pair_loss(a, b, t, chosen / chosen.mean())
    torch.testing.assert_close(loss, torch.stack(rows).mean())  # over those that count
    loss.backward()
    assert not a.grad[2].any() and not b.grad[3].any()
    assert a.grad[[0, 1, 3, 4]].any(1).all()


def test_weights_of_one_change_nothing():
    with seeded(3):
        a, t = torch.rand(6, 3).softmax(1), torch.rand(6, 6)
    assert torch.equal(pair_loss(a, a, t), pair_loss(a, a, t, torch.ones(6, 6)))


def test_sure_and_wrong_is_dear_and_finite_both_ways():
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    dear = -math.log(1e-7)
    assert pair_loss(one, one, torch.zeros(1, 1)).item() == pytest.approx(dear, rel=0.02)
    assert pair_loss(one, other, torch.ones(1, 1)).item() == pytest.approx(dear, rel=1e-4)
    assert abs(pair_loss(one, one, torch.ones(1, 1)).item()) < 1e-6
    assert abs(pair_loss(one, other, torch.zeros(1, 1)).item()) < 1e-6
