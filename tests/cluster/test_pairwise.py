"""Labels and loss of pairs by hand, by loop, in float64, and with pairs left out."""

import math

import pytest
import torch
from torch.nn import functional as F

from dcl.cluster.pairwise import cosine_labels, knn_labels, l2_labels, pair_loss, sne_labels
from dcl.train import seeded


def test_pair_loss_is_the_mean_over_rows_of_one_and_rows_of_the_other():
    with seeded(0):
        a, b = torch.rand(5, 3).softmax(1), torch.rand(6, 3).softmax(1)
        t = torch.rand(5, 6)
    torch.testing.assert_close(pair_loss(a, b, t), F.binary_cross_entropy(a @ b.T, t))
    assert torch.equal(pair_loss(a, b, t), pair_loss(a, b, t, torch.ones(5, 6)))


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


def test_sure_and_wrong_is_dear_and_finite_both_ways():
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    dear = -math.log(1e-7)
    assert pair_loss(one, one, torch.zeros(1, 1)).item() == pytest.approx(dear, rel=0.02)
    assert pair_loss(one, other, torch.ones(1, 1)).item() == pytest.approx(dear, rel=1e-4)
    assert abs(pair_loss(one, one, torch.ones(1, 1)).item()) < 1e-6
    assert abs(pair_loss(one, other, torch.zeros(1, 1)).item()) < 1e-6


# ---------------------------------------------------------------- labelers


@pytest.fixture
def features():
    with seeded(1):
        return torch.rand(40, 6, dtype=torch.float64)


def test_cosine_labels_by_hand():
    f = torch.tensor([[1.0, 0.0], [3.0, 0.0], [4.0, 3.0], [0.0, 2.0]])  # cosines 1, .8, .6, 0
    assert cosine_labels(f, 0.79).tolist() == [
        [1, 1, 1, 0],
        [1, 1, 1, 0],
        [1, 1, 1, 0],
        [0, 0, 0, 1],
    ]
    assert cosine_labels(f, 0.81).sum() == 6  # only the first two, and each with itself
    assert cosine_labels(f, 1.0)[0, 1] == 1  # "at least", not "more than"


def test_l2_labels_by_hand():
    f = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]])  # distances 5, 5.83, 1
    assert l2_labels(f, 5.5).tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    assert l2_labels(f, 5.0).tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 1]]  # "below"
    assert l2_labels(f, 0.0).tolist() == torch.eye(3).tolist()


@pytest.mark.parametrize(("threshold", "t"), [(0.02, 1.0), (0.03, 0.5), (0.05, 0.3)])
def test_sne_labels_are_the_symmetrised_neighbour_probabilities(features, threshold, t):
    square = torch.cdist(features, features).square().fill_diagonal_(torch.inf)
    p = (-square / t**2).softmax(1)
    expected = ((p + p.T) / 2 > threshold).float().fill_diagonal_(1)
    assert 40 < expected.sum() < 1600
    assert torch.equal(sne_labels(features, threshold, t), expected)


def test_knn_labels_are_the_union_of_both_directions():
    f = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    # k = 3: each with its nearest other; 0-1, 1-0, 2-1, 3-2, and the way back
    assert knn_labels(f, 3).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]


def test_knn_labels_with_duplicates_keep_the_diagonal():
    assert torch.equal(knn_labels(torch.ones(5, 3), 3), torch.eye(5))
