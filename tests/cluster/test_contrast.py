"""The contrastive losses by hand, against a slow oracle, and their gradients."""

import math

import pytest
import torch
from torch.nn import functional as F

from dcl.cluster.contrast import nt_xent
from dcl.train import seeded


@pytest.fixture
def pair():
    with seeded(0):
        return torch.randn(5, 7), torch.randn(5, 7)


def test_loss_by_hand():
    # anchor (1,0), partner (0,1), others (-1,0) twice: cosines 0, -1, -1 at T = 1
    z1 = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    z2 = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    first = math.log(1 + 2 * math.exp(-1))
    second = math.log(math.e + math.exp(-1) + 1) - 1  # (-1,0): partner 1, cosines -1 and 0
    third = math.log(3)  # (0,1): all cosines 0
    assert nt_xent(z1, z2, 1.0, symmetric=False).item() == pytest.approx((first + second) / 2)
    whole = (first + 2 * second + third) / 4
    assert nt_xent(z1, z2, 1.0).item() == pytest.approx(whole)


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_loss_is_the_cross_entropy_of_cosines(pair, temperature):
    z1, z2 = pair
    z = torch.cat([z1, z2])
    cosines = F.cosine_similarity(z[:, None], z[None], dim=2).fill_diagonal_(-torch.inf)
    partner = torch.tensor([5, 6, 7, 8, 9, 0, 1, 2, 3, 4])
    expected = F.cross_entropy(cosines / temperature, partner, reduction="none")
    torch.testing.assert_close(nt_xent(*pair, temperature), expected.mean())
    one = nt_xent(*pair, temperature, symmetric=False)
    torch.testing.assert_close(one, expected[:5].mean())


def test_the_symmetric_loss_is_the_mean_of_both_directions(pair):
    z1, z2 = pair
    there, back = (nt_xent(a, b, symmetric=False) for a, b in ((z1, z2), (z2, z1)))
    torch.testing.assert_close(nt_xent(z1, z2), (there + back) / 2)
    assert abs(there - back) > 0.01  # so the released one-directional loss is another number


def test_gradient_in_float64(pair):
    z1, z2 = (z.double().requires_grad_() for z in pair)
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), (z1, z2))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5, False), (z1, z2))
