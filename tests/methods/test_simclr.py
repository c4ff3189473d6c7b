"""SimCLR as a pretext: one pass for both views, and what its recipes promise."""

import math
from dataclasses import replace

import pytest
import torch

from dcl.data import load
from dcl.methods.simclr import Config, SimCLR, fit
from dcl.nets import convnets
from dcl.objective import Embedding
from dcl.recipes import simclr as recipes


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


def test_an_embedding_serves_as_an_encoder():
    images = load("digits").subset(8).images
    objective = SimCLR(images, recipes.smoke).train()
    encoder = Embedding(objective, images)
    x = images.float() / 255
    assert encoder.out_dim == recipes.smoke.out_dim and not encoder.training | objective.training
    assert torch.equal(encoder(x), objective.embed(x))
    assert encoder.train()(x).shape == (8, encoder.out_dim) and objective.training
