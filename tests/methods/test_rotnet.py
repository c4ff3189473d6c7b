"""RotNet: the four rotations pixel by pixel, the loss by hand, and that it learns."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods.rotnet import Config, RotNet, fit, rotations
from dcl.recipes import rotnet as recipes
from dcl.train import seeded
from dcl.views import View


def test_rotations_of_four_pixels():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    turned, quarter = rotations(x)
    assert turned.flatten(1).tolist() == [[1, 2, 3, 4], [2, 4, 1, 3], [4, 3, 2, 1], [3, 1, 4, 2]]
    assert quarter.tolist() == [0, 1, 2, 3]


def test_images_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match=r"square to be turned; got \(4, 6\)"):
        rotations(torch.rand(1, 1, 4, 6))
    images = torch.zeros(8, 1, 4, 6, dtype=torch.uint8)
    with pytest.raises(ValueError, match="square"):
        fit(images, replace(recipes.smoke, train=TrainConfig(1, 4)))


def test_loss_is_the_mean_over_all_four_turns():
    with seeded(0):
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(9, 5))
        encoder.out_dim = 5
        x = torch.rand(3, 1, 3, 3)
        objective = RotNet(x, Config(view=View()), encoder)
    each = [
        F.cross_entropy(objective.head(encoder(x[b : b + 1].rot90(q, (2, 3)))), torch.tensor([q]))
        for b in range(3)
        for q in range(4)
    ]
    found = objective(x, torch.arange(3))
    torch.testing.assert_close(found["loss"], torch.stack(each).mean())
    nn.init.zeros_(objective.head.weight), nn.init.zeros_(objective.head.bias)
    found = objective(x, torch.arange(3))  # knows nothing: ln 4, and always the first answer
    assert found["loss"].item() == pytest.approx(objective.chances()["loss"])
    assert found["rotation"] == 1 / 4


def test_it_learns_to_tell_rotations_of_digits():
    rows = []
    images = load("digits").subset(400).images
    config = replace(recipes.smoke, train=TrainConfig(4, 32, "adam", 5e-3))
    fit(images, config, monitor=lambda *row: rows.append(row[3]))
    assert rows[-1]["rotation"] > 0.5  # guessing: .25
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_the_paper_profile_is_the_published_recipe():
    t = Config().train
    assert (t.epochs, t.batch_size, t.lr, t.nesterov, t.weight_decay) == (200, 128, 0.1, True, 5e-4)
    assert (t.milestones, t.gamma) == ((60, 120, 160), 0.2)
