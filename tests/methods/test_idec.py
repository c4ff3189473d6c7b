"""IDEC: its loss by hand, its decoder, what its recipes share with those of DEC."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods import autoencoder
from dcl.methods.idec import IDEC, Config, fit, reconstruction_loss
from dcl.recipes import recipe, recipes
from dcl.train import seeded

PRETEXT = autoencoder.Config(
    dims=(32, 32, 5), layers=TrainConfig(0), train=TrainConfig(15, 50, "adam", 3e-3)
)
SMALL = Config(interval=4, starts=2, pretext=PRETEXT, train=TrainConfig(3, 40, "sgd", 0.1))


@pytest.fixture(scope="module")
def images():
    return load("digits").subset(220).images


@pytest.fixture(scope="module")
def coder(images):
    return autoencoder.fit(images, PRETEXT)


def test_reconstruction_by_hand():
    x, drawn = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]] * 2)
    assert_close(reconstruction_loss(x, drawn), torch.tensor(14 / 6))


def test_it_is_reconstruction_and_a_share_of_the_divergence(images, coder):
    with seeded(0):
        objective = IDEC(images, replace(SMALL, gamma=0.3), copy.deepcopy(coder))
        objective.before_epoch(0)
    objective.centres.data += 0.1
    rows = torch.arange(30)
    x = images[rows].float() / 255
    found = objective(x, rows)
    error = F.mse_loss(coder.decoder(coder.encoder(x)), coder.target(x))
    q = objective.predict_proba(x)
    kl = F.kl_div(q.log(), objective.target[rows], reduction="batchmean")
    assert_close(found["reconstruction"], error)
    assert_close(found["kl"], kl)
    assert_close(found["loss"], error + 0.3 * kl)


def test_it_trains_a_copy_of_the_decoder_and_cannot_do_without(images, coder):
    before = [p.clone() for p in coder.parameters()]
    kept = fit(images, SMALL, encoder=coder)
    for now, old in zip(kept.decoder.parameters(), coder.decoder.parameters(), strict=True):
        assert not torch.equal(now, old)
    assert all(torch.equal(a, b) for a, b in zip(before, coder.parameters()))
    mine = nn.Sequential(nn.Flatten(), nn.Linear(256, 4))
    mine.out_dim = 4
    with pytest.raises(ValueError, match="encoder must be an Autoencoder for IDEC"):
        fit(images, SMALL, encoder=mine)


def test_gamma_is_positive():
    with pytest.raises(ValueError, match="gamma must be above 0; got 0.0"):
        replace(SMALL, gamma=0.0)


def test_the_recipes_are_the_published_ones():
    assert recipes("idec").keys() == recipes("dec").keys()
    for name, config in recipes("idec").items():
        t = config.train
        assert (config.gamma, t.optimizer, t.lr) == (0.1, "adam", 1e-3), name
        assert config.pretext == recipe("dec", name).pretext
    c = recipe("idec", "paper")
    assert c.interval == 140
    assert 0 <= c.train.epochs * c.interval - 20_000 < c.interval
