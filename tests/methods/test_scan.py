"""SCAN by hand, by loop, against the released formulas, and what its parts promise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.cluster.neighbors import draw, mine
from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods import scan as method
from dcl.methods.scan import Config, Scan, fit, head_losses, scan_loss
from dcl.methods.selflabel import SelfLabel
from dcl.nets import convnets
from dcl.recipes import scan as recipes
from dcl.train import extract, predict, seeded, train
from dcl.views import View

STILL = View()
UNDRAWN = {"n_neighbors": 1, "threshold": 0.1}  # of a step: see tests/test_together.py


@pytest.fixture
def logits():
    with seeded(0):
        return torch.randn(6, 4) * 2, torch.randn(6, 4) * 2


@pytest.fixture(scope="module")
def digits():
    return load("digits").subset(160)


def released_scan_loss(a, n, weight):
    """The released form: BCE of the inner product, entropy of probabilities clamped at 1e-8."""
    p, q = a.softmax(1), n.softmax(1)
    similarity = (p * q).sum(1)
    agree = F.binary_cross_entropy(similarity.clamp(max=1), torch.ones(len(p)))
    mean = p.mean(0).clamp(min=1e-8)
    return agree + weight * (mean * mean.log()).sum()


# -- the clustering loss -----------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_the_loss_is_the_released_one(logits, weight):
    torch.testing.assert_close(scan_loss(*logits, weight), released_scan_loss(*logits, weight))


def test_the_bound_is_reached_by_certain_and_even_answers():
    a = torch.eye(4).repeat(3, 1) * 100
    assert scan_loss(a, a, 5.0).item() == pytest.approx(-5 * math.log(4))
    collapsed = torch.zeros(8, 4)
    collapsed[:, 0] = 100
    assert scan_loss(collapsed, collapsed, 5.0).item() == pytest.approx(0, abs=1e-5)


def test_gradient_in_float64(logits):
    a, n = (x.double().requires_grad_() for x in logits)
    assert torch.autograd.gradcheck(lambda a, n: scan_loss(a, n, 5.0), (a, n))


def test_pairs_that_disagree_completely_still_learn():
    a = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    n = torch.tensor([[0.0, 200.0, 0.0]])
    released = released_scan_loss(a, n, 0.0)
    (zero,) = torch.autograd.grad(released, a)
    assert released.item() == pytest.approx(100) and zero.abs().max() == 0
    loss = scan_loss(a, n, 0.0)
    (gradient,) = torch.autograd.grad(loss, a)
    # either side gives way; the third class is worse: -ln(2 e^-200)
    assert loss.item() == pytest.approx(200 - math.log(2), rel=1e-4)
    assert gradient[0, 0] > 0.4 and gradient[0, 1] < -0.4


@pytest.mark.parametrize("scale", [1e3, 1e5, 1e30])
def test_any_finite_logits_give_a_finite_loss_and_gradient(scale):
    with seeded(0):
        a, n = (scale * torch.randn(2, 50, 5)).requires_grad_()
    pair = torch.stack([a, n]).detach().requires_grad_()
    scan_loss(*pair).backward()
    assert pair.grad.isfinite().all()


# -- several heads -----------------------------------------------------------------------------


def test_the_loss_of_a_head_is_the_mean_over_all_its_neighbours():
    with seeded(0):
        logits, neighbors = torch.randn(7, 3, 4), torch.randint(0, 7, (7, 2))
    for head, loss in zip(logits.unbind(1), head_losses(logits.log_softmax(2), neighbors, 5.0)):
        pairs = [scan_loss(head, head[j], 5.0) for j in neighbors.T]
        torch.testing.assert_close(loss, torch.stack(pairs).mean())


def small(digits, **changes):
    config = replace(
        recipes.smoke, scan_view=STILL, weak=STILL, strong=STILL, n_neighbors=5, **changes
    )
    with seeded(0):
        encoder = convnets.encoder("small_cnn", digits.images, width=4)
        neighbors = mine(digits.images.flatten(1).float(), 5)
        return Scan(encoder, digits.images, neighbors, config), config


def test_losses_of_heads_are_summed_and_logged_as_means(digits):
    objective, config = small(digits, heads=3)
    x, i = digits.images[:30].float() / 255, torch.arange(30)
    with seeded(1):
        losses = objective(x, i)
    with seeded(1):
        j = draw(objective.neighbors, i)
        z = objective.encoder(torch.cat([x, digits.images[j].float() / 255]))
    pairs = [head(z).chunk(2) for head in objective.heads]
    expected = sum(scan_loss(a, n, 5.0) for a, n in pairs)
    torch.testing.assert_close(losses["loss"], expected, atol=1e-3, rtol=1e-3)
    whole = 3 * (losses["consistency"] - 5 * losses["entropy"])
    torch.testing.assert_close(losses["loss"], whole)


def test_heads_that_know_nothing_cost_what_the_objective_says(digits):
    objective, _ = small(digits, heads=2)
    for head in objective.heads:
        nn.init.zeros_(head[-1].weight), nn.init.zeros_(head[-1].bias)
    losses = objective(digits.images[:30].float() / 255, torch.arange(30))
    assert objective.chances() == {k: pytest.approx(losses[k].item()) for k in objective.chances()}
    assert objective.chances()["entropy"] == math.log(10)


def test_the_head_with_the_lowest_loss_is_kept(digits):
    config = replace(recipes.smoke, heads=4, selflabel=replace(recipes.smoke.selflabel, epochs=0))
    seen = {}

    def look(stage, epoch, objective, losses):
        if stage == "scan":
            log_p = extract(objective.log_proba, digits.images)
            seen["losses"] = head_losses(log_p, objective.neighbors, 5.0)
            seen["answers"] = log_p.argmax(2)  # (N,H)

    model = fit(digits.images, config, monitor=look)
    best = seen["losses"].argmin()
    assert best != 0 and torch.equal(predict(model, digits.images), seen["answers"][:, best])


def test_a_frozen_encoder_stands_still(digits):
    objective, _ = small(digits, freeze_encoder=True)
    before = {k: v.clone() for k, v in objective.encoder.state_dict().items()}
    head = objective.heads[0][-1].weight.clone()
    train(objective, digits.images, TrainConfig(2, 40, "adam", 0.01))
    after = objective.encoder.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)  # BatchNorm statistics too
    assert not torch.equal(head, objective.heads[0][-1].weight)
    model = SelfLabel(objective.encoder, objective.heads[0], objective.config)
    assert all(p.requires_grad for p in model.parameters())


# -- the whole ---------------------------------------------------------------------------------


def test_neighbours_come_from_the_embedding_and_not_from_labels(digits, monkeypatch):
    seen = []
    mined = method.mine
    monkeypatch.setattr(method, "mine", lambda z, k: seen.append((z, k)) or mined(z, k))
    fit(digits.images, replace(recipes.smoke, n_neighbors=7))
    ((z, k),) = seen
    assert k == 7 and z.shape == (160, 64)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(160))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 0}, "heads must be at least 1"),
        ({"threshold": 1.0}, "threshold must be at least 0 and below 1; got 1.0"),
        ({"ema": "official"}, "ema must be one of off, teacher; got 'official'"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**change)


def test_too_many_neighbours_are_refused_before_training(digits):
    with pytest.raises(ValueError, match="n_neighbors must be at most 159 for 160 images; got 160"):
        fit(digits.images, replace(recipes.smoke, n_neighbors=160), monitor=1 / 1)


class Unchanged(View):
    """As `View()`, but not known to change nothing."""

    def __call__(self, x):
        return x


def test_heads_on_features_are_those_that_looking_again_every_time_would_give(tmp_path):
    images = load("digits").subset(150).images
    torch.manual_seed(0)
    own = nn.Sequential(nn.Flatten(), nn.Linear(256, 12), nn.BatchNorm1d(12), nn.Tanh())
    own.out_dim = 12
    step = TrainConfig(3, 50, "adam", 5e-3, precision="float32")
    once = replace(recipes.frozen, n_clusters=5, heads=2, n_neighbors=4, scan=step)
    again = replace(once, scan_view=Unchanged())
    a = fit(images, once, encoder=own, run_dir=tmp_path)
    b = fit(images, again, encoder=own)
    assert list(tmp_path.glob("features-*")) and not a.encoder.training
    for (name, x), (_, y) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert torch.allclose(x, y, atol=1e-5), name
    assert torch.equal(own[1].weight, a.encoder[1].weight)  # frozen
