"""LSD-C by hand, by loop, in float64, and against the figures of the released code."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ablations
from ablations import ReleasedTargets
from dcl.cluster import pairwise
from dcl.cluster.pairwise import knn_labels, pair_loss
from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods import lsdc, rotnet, simclr
from dcl.methods.lsdc import LSDC, Config, fit, pair_labels
from dcl.nets import convnets
from dcl.optim import ramp_up
from dcl.recipes import lsdc as recipes
from dcl.recipes import recipe
from dcl.train import seeded, train
from dcl.views import View
from dcl.views.ricap import RicapDraw, mixed_targets, ricap, ricap_draw

SGD = TrainConfig(epochs=1, batch_size=4, lr=0.5)
UNDRAWN = {"beta": 0}  # of a step: see tests/test_together.py


def draw(perms, weights):
    return RicapDraw(torch.tensor(perms), torch.tensor(weights), (0,) * 4, (0,) * 4)


def released_targets(s, d):
    """The soft pair labels of the release, by the subclass that the ablation trains."""
    return ReleasedTargets(Flat(), Config(frozen=())).targets(s, d)


# ---------------------------------------------------------------- labels and targets


RULES = {
    "cosine": {"threshold": 0.8},
    "l2": {"threshold": 0.7},
    "sne": {"threshold": 0.03, "temperature": 0.5},
    "knn": {"k": 6},
}


@pytest.mark.parametrize("labeler", RULES)
def test_pairs_are_labelled_by_the_rule_asked_for_and_without_gradient(labeler):
    with seeded(1):
        f = torch.rand(40, 6).requires_grad_()
    s = pair_labels(f, Config(labeler=labeler, **RULES[labeler]))
    function = getattr(pairwise, f"{labeler}_labels")
    assert torch.equal(s, function(f.detach(), **RULES[labeler]))
    assert not s.requires_grad and 40 < s.sum() < 1600


def test_mixed_targets_by_hand():
    s = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    d = draw([[0, 1, 2], [2, 0, 1], [0, 1, 2], [0, 1, 2]], [0.5, 0.3, 0.2, 0.0])
    t = mixed_targets(s, d)
    # image 0 is .7 itself and .3 image 2; image 1 is .7 itself and .3 image 0; 2: .7 and .3 of 1
    torch.testing.assert_close(t, torch.tensor([[0.7, 0.7, 0.3], [1, 1, 0.0], [0.3, 0.3, 0.7]]))
    torch.testing.assert_close(released_targets(s, d), t.T)


def test_ramp_up():
    values = [ramp_up(t) for t in (0, 25, 50, 100, 219)]
    assert values == pytest.approx([0.0337, 0.3003, 1.4325, 5, 5], abs=1e-4)
    assert ramp_up(5, 10, 2.0) == pytest.approx(2 * math.exp(-1.25))


# ---------------------------------------------------------------- objective


class Flat(nn.Module):
    """Mean brightness of the quarters, scaled."""

    out_dim = 4

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return F.adaptive_avg_pool2d(x, 2).flatten(1) * self.scale


PLAIN = Config(3, "knn", k=3, view=View(), clean_view=View(), frozen=(), train=SGD)


def test_forward_is_the_algorithm_step_by_step():
    with seeded(0):
        x = torch.rand(6, 1, 8, 8)
        objective = LSDC(Flat(), PLAIN)
    objective.epoch = 100
    with seeded(5):
        found = objective(x, torch.arange(6))
    with seeded(5):
        for _ in range(3):  # clean and to be mixed: views draw, though they change nothing
            View()(x)
        d = ricap_draw(6, 8)
        a, b = ricap(x, d), ricap(x, d)
    p, p_a, p_b = (objective.head(objective.encoder(v)).softmax(1) for v in (x, a, b))
    s = knn_labels(objective.encoder(x).detach(), 3)
    pairs = pair_loss(p_a, p, mixed_targets(s, d))
    agree = ((p_a - p_b) ** 2).mean()
    assert agree > 0
    torch.testing.assert_close(found["pairs"], pairs)
    torch.testing.assert_close(found["consistency"], agree)
    torch.testing.assert_close(found["loss"], pairs + 5 * agree)
    assert found["positive"] == s.mean()

    with seeded(5):
        other = ReleasedTargets(Flat(), PLAIN)
        other.load_state_dict(objective.state_dict())
    with seeded(5):
        theirs = other(x, torch.arange(6))["pairs"]
    torch.testing.assert_close(theirs, pair_loss(p_a, p, mixed_targets(s, d).T))


def test_without_mixing_the_targets_are_the_labels():
    with seeded(0):
        x = torch.rand(6, 1, 8, 8)
        objective = LSDC(Flat(), replace(PLAIN, beta=0))
    p, s = objective.predict_proba(x), knn_labels(objective.encoder(x).detach(), 3)
    found = objective(x, torch.arange(6))
    torch.testing.assert_close(found["pairs"], pair_loss(p, p, s))
    assert found["consistency"] == 0


def test_labels_come_from_the_clean_view(monkeypatch):
    seen = []
    monkeypatch.setattr(lsdc, "pair_labels", lambda f, c: seen.append(f) or torch.eye(len(f)))
    x = torch.rand(6, 1, 8, 8)
    objective = LSDC(Flat(), replace(PLAIN, view=View(rotate=180)))
    objective(x, torch.arange(6))
    assert torch.equal(seen[0], objective.encoder(x))


def test_the_head_may_learn_faster_than_the_encoder():
    images = load("digits").subset(4).images
    moved = {}
    for rate in (1.0, 3.0):
        with seeded(0):
            objective = LSDC(Flat(), replace(PLAIN, head_rate=rate))
            before = {n: p.detach().clone() for n, p in objective.named_parameters()}
            train(objective, images, SGD)
        moved[rate] = {n: p.detach() - before[n] for n, p in objective.named_parameters()}
    assert moved[1.0]["head.weight"].abs().max() > 1e-4
    torch.testing.assert_close(moved[3.0]["head.weight"], 3 * moved[1.0]["head.weight"])
    torch.testing.assert_close(moved[3.0]["encoder.scale"], moved[1.0]["encoder.scale"])


def digits_encoder(images):
    with seeded(0):
        return convnets.encoder("small_cnn", images, width=4)


def test_frozen_layers_stay_but_their_batch_statistics_move():
    images = load("digits").subset(64).images
    encoder = digits_encoder(images)
    # a bias before BatchNorm has no gradient: weights tell
    names = [name for name, _ in encoder.named_parameters() if name.endswith("weight")]
    below = names[0].rsplit(".", 1)[0], names[1].rsplit(".", 1)[0]  # first convolution, its norm
    config = replace(recipes.smoke, frozen=below, train=TrainConfig(2, 32, lr=0.1))
    trained = fit(images, config, encoder=encoder).encoder
    before, after = encoder.state_dict(), trained.state_dict()
    for name in names:
        assert torch.equal(before[name], after[name]) == name.startswith(below), name
    assert not torch.equal(before[f"{below[1]}.running_mean"], after[f"{below[1]}.running_mean"])
    assert all(p.requires_grad for p in encoder.parameters())  # the caller's own is left alone


def test_a_fitted_pretext_is_taken_where_it_measures():
    images = load("digits").subset(64).images
    x = images.float() / 255
    turned = rotnet.fit(images, recipe("rotnet", "smoke"))
    assert lsdc.features_of(turned) is turned.encoder
    contrastive = simclr.fit(images, recipe("simclr", "smoke")).eval()
    found = lsdc.features_of(contrastive)
    torch.testing.assert_close(found(x), contrastive.embed(x) * found.out_dim**0.5)
    plain = digits_encoder(images)
    assert lsdc.features_of(plain) is plain


def test_the_released_targets_are_all_that_their_ablation_changes(monkeypatch):
    images = load("digits").subset(64).images
    config, pretext = replace(recipes.smoke, start="kmeans"), Flat()
    released = ablations.released_targets(images, config, encoder=pretext)
    monkeypatch.setattr(ReleasedTargets, "targets", LSDC.targets)
    ours = fit(images, config, encoder=pretext).state_dict()
    same = ablations.released_targets(images, config, encoder=pretext).state_dict()
    assert all(torch.equal(ours[name], value) for name, value in same.items())
    assert not torch.equal(released.head.weight, same["head.weight"])


def test_freeze_takes_whole_names_only():
    net = nn.Module()
    net.layer1, net.layer10 = nn.Linear(2, 2), nn.Linear(2, 2)
    convnets.freeze(net, ("layer1",))
    assert not net.layer1.weight.requires_grad and net.layer10.weight.requires_grad
    with pytest.raises(ValueError, match=r"frozen must name parts .*'layer10'\]; got 'layer'"):
        convnets.freeze(net, ("layer",))


def test_the_paper_freezes_all_but_the_last_block_and_the_head():
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    encoder = convnets.encoder("resnet18", images, shortcut="pad")
    objective = LSDC(encoder, Config())
    trained = {n for n, p in objective.named_parameters() if p.requires_grad}
    assert all(n.startswith(("encoder.1.layer4", "head")) for n in trained)
    count = sum(p.numel() for p in objective.parameters())
    free = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    assert (round(count / 1e6, 2), round(free / 1e6, 2)) == (11.00, 8.27)


def test_a_head_that_starts_at_centroids_tells_the_clouds_apart_untrained():
    with seeded(0):
        images = torch.randint(0, 60, (64, 1, 8, 8)).to(torch.uint8)
        images[:32, :, :, :4] += 150
        images[32:, :, :, 4:] += 150
    still = Config(2, frozen=(), start="kmeans", train=TrainConfig(0, 32))
    objective = fit(images, still, encoder=Flat())
    x = images.float() / 255
    means = torch.stack([objective.encoder(x[:32]).mean(0), objective.encoder(x[32:]).mean(0)])
    rows = F.normalize(means, dim=1)
    clusters = objective.predict(x)
    first = int(clusters[0])
    assert torch.equal(clusters, torch.tensor([first, 1 - first]).repeat_interleave(32))
    torch.testing.assert_close(objective.head.weight.detach()[[first, 1 - first]], rows)
    assert not objective.head.bias.any()
    random = fit(images, replace(still, start="random"), encoder=Flat())
    assert not torch.allclose(random.head.weight[[first, 1 - first]], rows, atol=0.05)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"start": "pca"}, "start must be one of random, kmeans; got 'pca'"),
        ({"labeler": "euclid"}, "labeler must be one of cosine, l2, sne, knn; got 'euclid'"),
        ({"labeler": "knn", "k": 1}, "k must be at least 2; got 1"),
        ({"temperature": 0}, "temperature must be above 0; got 0"),
        ({"ramp": 0}, "ramp must be at least 1; got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Config(**wrong)
