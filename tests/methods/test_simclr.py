"""SimCLR's loss by hand, by loop, in float64, and against the released one-directional form."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dcl.data import load
from dcl.methods.simclr import Config, SimCLR, fit, nt_xent
from dcl.nets import convnets
from dcl.recipes import simclr as recipes
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


def test_objective_takes_two_views_in_one_pass():
    images = load("digits").subset(8).images
    config = recipes.smoke
    objective = SimCLR(images, config, convnets.encoder("small_cnn", images, width=4))
    seen = []
    objective.encoder.register_forward_hook(lambda m, x, out: seen.append(x[0]))
    losses = objective(images.float() / 255, torch.arange(8))
    assert [x.shape[0] for x in seen] == [16]
    assert not torch.equal(seen[0][:8], seen[0][8:])
    assert losses["loss"].requires_grad
    z = objective.embed(images.float() / 255)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(8))


def test_training_finds_the_other_view():
    images = load("digits").subset(400).images
    quick = recipes.digits
    config = replace(quick, width=8, train=replace(quick.train, epochs=6, batch_size=64))
    rows = []
    fit(images, config, monitor=lambda stage, epoch, objective, losses: rows.append(losses))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3 < math.log(127)
    assert rows[-1]["positive"] > 0.7


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="temperature must be above 0; got 0"):
        Config(temperature=0)
