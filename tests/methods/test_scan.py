"""SCAN by hand, by loop, against the released formulas, and what its parts promise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.cluster.neighbors import agreement, draw, mine
from dcl.config import TrainConfig
from dcl.data import load
from dcl.measure.baselines import prototypes
from dcl.measure.metrics import accuracy, purity
from dcl.methods import scan as method
from dcl.methods import simclr
from dcl.methods.scan import Config, Scan, consistency, fit, head_losses, mean_entropy, scan_loss
from dcl.methods.selflabel import SelfLabel
from dcl.nets import convnets
from dcl.recipes import scan as recipes
from dcl.train import extract, predict, seeded, train
from dcl.views import View

STILL = View()


@pytest.fixture
def logits():
    with seeded(0):
        return torch.randn(6, 4) * 2, torch.randn(6, 4) * 2


@pytest.fixture(scope="module")
def digits():
    return load("digits").subset(160)


def entropy_by_loop(p):
    mean = [sum(float(row[k]) for row in p) / len(p) for k in range(p.shape[1])]
    return -sum(m * math.log(m) for m in mean if m > 0)


def released_scan_loss(a, n, weight):
    """The released form: BCE of the inner product, entropy of probabilities clamped at 1e-8."""
    p, q = a.softmax(1), n.softmax(1)
    similarity = (p * q).sum(1)
    agree = F.binary_cross_entropy(similarity.clamp(max=1), torch.ones(len(p)))
    mean = p.mean(0).clamp(min=1e-8)
    return agree + weight * (mean * mean.log()).sum()


# -- the clustering loss -----------------------------------------------------------------------


def test_consistency_by_hand():
    a = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    n = torch.tensor([[0.8, 0.2], [0.2, 0.8]])
    expected = torch.tensor([-math.log(0.5), -math.log(0.26)])
    torch.testing.assert_close(consistency(a.log(), n.log()), expected)


def test_mean_entropy_by_hand():
    certain = torch.tensor([[1.0, 1e-30], [1e-30, 1.0]])  # sure, and shared out evenly
    assert mean_entropy(certain.log()).item() == pytest.approx(math.log(2))
    one = torch.tensor([[0.9, 0.1], [0.7, 0.3]])
    expected = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert mean_entropy(one.log()).item() == pytest.approx(expected)


@pytest.mark.parametrize("weight", [0.0, 1.0, 5.0])
def test_loss_by_loop_and_as_released(logits, weight):
    a, n = logits
    p, q = a.softmax(1), n.softmax(1)
    agree = -sum(math.log(sum(float(x * y) for x, y in zip(*pq))) for pq in zip(p, q)) / 6
    expected = agree - weight * entropy_by_loop(p)  # the anchors' entropy, not the neighbours'
    assert scan_loss(a, n, weight).item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(scan_loss(a, n, weight), released_scan_loss(a, n, weight))


def test_only_anchors_enter_the_entropy(logits):
    a, n = logits
    difference = scan_loss(a, n, 5.0) - scan_loss(n, a, 5.0)
    expected = 5 * (mean_entropy(n.log_softmax(1)) - mean_entropy(a.log_softmax(1)))
    torch.testing.assert_close(difference, expected)
    assert abs(expected) > 0.01


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


def test_share_of_pairs_without_gradient_in_the_released_loss():
    with seeded(0):
        a, n = (60 * torch.randn(2, 4000, 10)).unbind()
    pair = (a.requires_grad_(), n.requires_grad_())
    old = torch.cat(torch.autograd.grad(released_scan_loss(*pair, 0.0), pair), 1)  # (B,2K)
    new = torch.cat(torch.autograd.grad(scan_loss(*pair, 0.0), pair), 1)
    dead = (old.abs().sum(1) == 0) & (a.argmax(1) != n.argmax(1))
    assert 0.08 < dead.float().mean() < 0.14  # .11
    # the side that has to give way gets a full gradient: 1 up and 1 down, over B
    assert (new[dead].abs().sum(1) * 4000 > 0.9).all()


@pytest.mark.parametrize("scale", [1e3, 1e5, 1e30])
def test_any_finite_logits_give_a_finite_loss_and_gradient(scale):
    with seeded(0):
        a, n = (scale * torch.randn(2, 50, 5)).requires_grad_()
    pair = torch.stack([a, n]).detach().requires_grad_()
    scan_loss(*pair).backward()
    assert pair.grad.isfinite().all()


# -- neighbours --------------------------------------------------------------------------------


def test_mining_by_loop_leaves_the_image_out():
    with seeded(0):
        z = torch.randn(30, 5)
    found = mine(z, 4)
    u = F.normalize(z, dim=1)
    for row in range(30):
        others = sorted((k for k in range(30) if k != row), key=lambda k: -float(u[row] @ u[k]))
        assert found[row].tolist() == others[:4]


def test_mining_among_duplicates():
    z = torch.ones(6, 3)
    found = mine(z, 2)
    assert found.shape == (6, 2)
    assert (found != torch.arange(6)[:, None]).all()


@pytest.mark.parametrize("k", [0, 30])
def test_a_wrong_number_of_neighbours_is_refused(k):
    with pytest.raises(ValueError, match=f"between 1 and the number of rows less one, 29; got {k}"):
        mine(torch.randn(30, 2), k)


def test_agreement_by_hand():
    labels = torch.tensor([0, 0, 1])
    assert agreement(torch.tensor([[1, 2], [0, 2], [0, 1]]), labels) == pytest.approx(2 / 6)


def test_neighbours_are_drawn_evenly():
    with seeded(0):
        neighbors = torch.stack([torch.randperm(100)[:20] for _ in range(100)])
        i = torch.arange(100).repeat(2000)
        drawn = draw(neighbors, i)
    counts = torch.bincount(drawn[i == 3], minlength=100)
    assert set(counts.nonzero()[:, 0].tolist()) == set(neighbors[3].tolist())
    assert counts.max() < 160  # 100 expected of each


# -- several heads -----------------------------------------------------------------------------


def test_head_losses_by_loop():
    with seeded(0):
        log_p = torch.randn(7, 3, 4).log_softmax(2)
        neighbors = torch.randint(0, 7, (7, 2))
    for h, loss in enumerate(head_losses(log_p, neighbors, 5.0)):
        p = log_p[:, h].exp()
        agree = [-math.log(float(p[a] @ p[n])) for a in range(7) for n in neighbors[a]]
        expected = sum(agree) / 14 - 5 * entropy_by_loop(p)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


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


def test_more_clusters_than_classes(digits):
    stage = TrainConfig(8, 32, "adam", 5e-3)
    config = replace(recipes.smoke, n_clusters=25, n_neighbors=5, scan=stage, selflabel=stage)
    clusters = predict(fit(digits.images, config), digits.images)
    assert clusters.max() < 25 and clusters.unique().numel() > 5
    assert purity(digits.labels, clusters) >= accuracy(digits.labels, clusters)


def test_a_pretext_handed_in_gives_the_same_run(digits):
    config = recipes.smoke
    pretext = simclr.fit(digits.images, replace(config.pretext, seed=config.seed))
    a, b = fit(digits.images, config), fit(digits.images, config, encoder=pretext)
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_neighbours_come_from_the_embedding_and_not_from_labels(digits, monkeypatch):
    seen = []
    mined = method.mine
    monkeypatch.setattr(method, "mine", lambda z, k: seen.append((z, k)) or mined(z, k))
    fit(digits.images, replace(recipes.smoke, n_neighbors=7))
    ((z, k),) = seen
    assert k == 7 and z.shape == (160, 64)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(160))


def test_prototypes_by_hand():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    p = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.95, 0.05, 0.0], [0.1, 0.9, 0.0]])
    assert prototypes(features, p, share=1.0).tolist() == [1, 3, -1]  # the middle one; nobody
    assert prototypes(features, p, share=0.1).tolist() == [2, 3, -1]  # only the surest


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
    with pytest.raises(ValueError, match="n_neighbors must be at least 1 and below 160; got 160"):
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
