"""DAC by hand, by loop, and where the gradient may come from."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods.dac import (
    DAC,
    Config,
    band_labels,
    fit,
    label_features,
    model,
    thresholds,
)
from dcl.recipes import recipe
from dcl.train import seeded, settle
from dcl.views import View

PLAIN = View()


@pytest.fixture(scope="module")
def images():
    return load("digits").subset(200).images


# ---------------------------------------------------------------- the band


def test_thresholds_by_hand():
    assert thresholds(0.0) == (0.95, 0.455)
    upper, lower = thresholds(0.2)
    assert (upper, lower) == pytest.approx((0.75, 0.475))


@pytest.mark.parametrize(
    "eta, until, epochs",
    [(0.009, 0.0, 46), (0.0045, 0.0, 91), (0.2, 0.0, 3), (0.009, 0.5**0.5, 25), (0.009, 0.9, 6)],
)
def test_training_ends_when_the_band_is_closed_or_low_enough(images, eta, until, epochs):
    objective = model(images, Config(width=4, depth=2, eta=eta, until=until))
    if not until:
        assert epochs == math.ceil(0.45 / (1.1 * eta))  # as the description of eta says
    for epoch in (epochs - 1, epochs):
        objective.before_epoch(epoch)
        assert objective.finished() == (epoch == epochs)
    if not until:
        assert objective.upper == pytest.approx(objective.lower, abs=1.21 * eta)
    assert Config.train.epochs == 46


def test_the_rate_decides_when_training_ends_and_train_asks(images):
    quick = replace(recipe("dac", "smoke"), eta=0.2, until=0.0)  # .495 / (1.1 * 1.1 * .2) = 2.05
    seen = []
    fit(images, replace(quick, train=replace(quick.train, epochs=9)),
        monitor=lambda stage, epoch, objective, losses: seen.append(losses))  # fmt: skip
    assert len(seen) == math.ceil(0.495 / (1.1 * 1.1 * 0.2)) == 3
    upper = [0.95 - 1.1 * 0.2 * epoch for epoch in range(3)]
    assert [row["upper"] for row in seen] == pytest.approx(upper, rel=1e-5)
    lower = [0.455 + 0.1 * 1.1 * 0.2 * epoch for epoch in range(3)]
    assert [row["lower"] for row in seen] == pytest.approx(lower, rel=1e-5)


def test_below_the_cosine_of_a_torn_image_it_is_alike_to_both_sides():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    g = label_features(p) @ label_features(p).T
    until = recipe("dac", "digits").until
    assert g[0, 1].item() == pytest.approx(until)
    assert band_labels(g, until + 1e-4, 0.46)[0].tolist() == torch.eye(3).tolist()
    assert band_labels(g, until - 1e-4, 0.46)[0].tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]


# ---------------------------------------------------------------- label features and pair labels


def test_label_features_are_the_papers_exponentials():
    with seeded(0):
        z = 4 * torch.randn(20, 7)
    e = (z - z.amax(1, keepdim=True)).exp()
    found = label_features(z.softmax(1))
    torch.testing.assert_close(found, e / e.norm(dim=1, keepdim=True))


def test_band_labels_by_hand():
    g = torch.tensor([[1.0, 0.9, 0.6], [0.9, 1.0, 0.3], [0.6, 0.3, 1.0]])
    alike, selected = band_labels(g, 0.9, 0.5)
    assert alike.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]  # "at least", not "more than"
    assert selected.tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    assert band_labels(torch.tensor([[0.5]]), 0.9, 0.5)[1] == 0  # "less than", not "at most"


# ---------------------------------------------------------------- the objective


class Dark(nn.Module):
    """Numbers that a picture of 2 x 2 pixels shows directly."""

    out_dim = 4

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x.flatten(1) * self.scale


def flat(kind=DAC):
    """An objective without BatchNorm's mixing of rows, so that every row speaks for itself."""
    objective = kind(some(), Config(n_clusters=4, view=PLAIN), Dark())
    objective.head = nn.Linear(4, 4, bias=False)
    nn.init.eye_(objective.head.weight)
    objective.head.weight.data *= 6
    return objective


def some(n=12):
    with seeded(4):
        return torch.rand(n, 1, 2, 2)


def moved(x):
    return (x.flip(3) * 0.9 + 0.05).contiguous()


def test_the_loss_is_the_mean_over_selected_pairs(monkeypatch):
    x, objective = some(), flat()
    monkeypatch.setattr(View, "__call__", lambda self, x: moved(x))
    objective.before_epoch(10)
    found = objective(x, torch.arange(12))
    l, v = (objective.embed(y).detach() for y in (x, moved(x)))  # noqa: E741
    g = l @ l.T
    sure = (g >= objective.upper) | (g < objective.lower)
    alike = (g >= objective.upper)[sure].float()
    assert 12 < sure.sum() < 144
    expected = F.binary_cross_entropy((v @ v.T).clamp(1e-7, 1 - 1e-7)[sure], alike)
    torch.testing.assert_close(found["loss"].detach(), expected, rtol=1e-4, atol=1e-5)
    assert found["selected"].item() == pytest.approx(sure.float().mean().item())
    assert found["alike"].item() == pytest.approx(alike.mean().item())
    assert found["upper"].item() == pytest.approx(0.95 - 0.099)


def test_gradient_comes_through_the_views_only(monkeypatch):
    """Views that hold the images back leave nothing to learn from."""
    x, objective = some(), flat()
    seen = []
    embed = DAC.embed
    monkeypatch.setattr(
        DAC, "embed", lambda self, x: seen.append((torch.is_grad_enabled(), x)) or embed(self, x)
    )
    monkeypatch.setattr(View, "__call__", lambda self, x: torch.zeros_like(x))
    objective(x, torch.arange(12))["loss"].backward()
    (clean_grad, clean), (view_grad, view) = seen
    assert not clean_grad and torch.equal(clean, x)
    assert view_grad and not view.any()
    assert not objective.encoder.scale.grad.any()  # 0 * scale
    monkeypatch.undo()
    objective(x, torch.arange(12))["loss"].backward()
    assert objective.encoder.scale.grad.any()


# ---------------------------------------------------------------- the network


def test_the_head_begins_as_identity_and_the_network_is_convolutions(images):
    objective = model(images, Config(width=4, depth=2))
    dense = [m for m in objective.head if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in dense] == [(10, 10)] * 2
    assert all(torch.equal(m.weight, torch.eye(10)) and not m.bias.any() for m in dense)
    assert isinstance(objective.head[-1], nn.ReLU)
    assert not [m for m in objective.encoder.modules() if isinstance(m, nn.Linear)]


def test_features_of_another_width_get_a_layer_more(images):
    class Twenty(nn.Module):
        out_dim = 20

        def forward(self, x):
            return x.flatten(1)[:, 100:120]

    objective = model(images, Config(), Twenty())
    dense = [m for m in objective.head if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in dense] == [(10, 20), (10, 10), (10, 10)]
    assert not torch.equal(dense[0].weight[:, :10], torch.eye(10))
    p = objective.predict_proba(images[:8].float() / 255)
    torch.testing.assert_close(p.sum(1), torch.ones(8))


# ---------------------------------------------------------------- BatchNorm


# ---------------------------------------------------------------- learning


class Mixed(nn.Module):
    out_dim = 6

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 6)

    def forward(self, x):
        return self.mix(x.flatten(1))


def blobs():
    """Pictures of 2 x 2 pixels, one of them brighter."""
    with seeded(0):
        y = torch.arange(256) % 4
        x = 0.25 + 0.12 * torch.randn(256, 4)
        x[torch.arange(256), y] += 0.5
    return (255 * x.clamp(0, 1)).to(torch.uint8).view(256, 1, 2, 2), y


@pytest.mark.parametrize("n_init", [1, 2])
def test_fit_settles_batchnorm_of_encoder_and_head(images, n_init):
    config = replace(recipe("dac", "smoke"), n_init=n_init, train=TrainConfig(1, 64, "adam", 1e-3))
    fitted = fit(images, config)
    net = nn.Sequential(fitted.encoder, fitted.head)
    again = copy.deepcopy(net)
    for norm in (m for m in again.modules() if isinstance(m, _BatchNorm)):
        norm.running_mean.fill_(5.0)  # forgotten
    settle(again, images, 10**6)  # one batch: all of them
    for (name, a), b in zip(net.named_buffers(), again.buffers(), strict=True):
        if "running" in name:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    first, x = next(m for m in again.modules() if isinstance(m, _BatchNorm)), images.float() / 255
    assert not first.training and first.momentum == 0.1
    y = again[0][1](again[0][0](x)).transpose(0, 1).flatten(1)  # standardised, convolved
    torch.testing.assert_close(first.running_mean, y.mean(1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(first.running_var, y.var(1), rtol=1e-3, atol=1e-4)


def test_of_several_trainings_the_one_with_the_lowest_loss_is_kept(tmp_path):
    x, _ = blobs()
    config = Config(n_clusters=4, eta=0.05, view=PLAIN, n_init=3, train=TrainConfig(3, 64, lr=0.1))
    last = {}

    def monitor(stage, epoch, objective, losses):
        last[stage] = losses["loss"], copy.deepcopy(objective.encoder.mix.weight)

    def lowest(seed, **folder):
        last.clear()
        with seeded(seed):
            start = Mixed()
        one = replace(config, seed=seed)
        found = fit(x, one, encoder=start, monitor=monitor, **folder).encoder.mix.weight
        assert list(last) == ["start1", "start2", "start3"]
        best = min(last, key=lambda stage: last[stage][0])
        assert len({loss for loss, _ in last.values()}) == 3
        assert [stage for stage, (_, w) in last.items() if torch.equal(w, found)] == [best]
        return best, found

    assert len({lowest(seed)[0] for seed in range(5)}) > 1  # neither the first nor the last
    _, found = lowest(2, run_dir=tmp_path)
    for file in tmp_path.glob("start3.*"):  # broken off before the third
        file.unlink()
    with seeded(2):
        encoder = Mixed()
    again = fit(x, replace(config, seed=2), encoder=encoder, run_dir=tmp_path)
    assert torch.equal(again.encoder.mix.weight, found)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"n_init": 0}, "n_init must be at least 1; got 0"),
        ({"eta": 0.0}, "eta must be above 0; got 0.0"),
        ({"depth": 0}, "depth must be at least 1; got 0"),
        ({"width": 0}, "width must be at least 1; got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Config(**wrong)
