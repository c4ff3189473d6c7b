"""SCAN by hand, by loop, against the released formulas, and what its parts promise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.cluster.neighbors import agreement, mine
from dcl.config import TrainConfig
from dcl.data import load
from dcl.measure.baselines import prototypes
from dcl.measure.metrics import accuracy, purity
from dcl.methods import scan as method
from dcl.methods import simclr
from dcl.methods.scan import (
    Config,
    Scan,
    SelfLabel,
    consistency,
    draw,
    fit,
    head_losses,
    mean_entropy,
    scan_loss,
    self_label_loss,
)
from dcl.nets import convnets
from dcl.optim import ema
from dcl.recipes import scan as recipes
from dcl.train import predict, seeded, train
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


def test_the_released_draw_takes_the_image_itself_once_in_k_plus_one():
    with seeded(0):
        neighbors = torch.stack([torch.randperm(99)[:20] for _ in range(100)])
        neighbors += neighbors >= torch.arange(100)[:, None]  # never the own row
        i = torch.arange(100).repeat(2000)
        ours, released = draw(neighbors, i), draw(neighbors, i, include_own=True)
    assert (ours == i).sum() == 0
    assert (released == i).float().mean().item() == pytest.approx(1 / 21, abs=0.003)
    counts = torch.bincount(ours[i == 3], minlength=100)
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


def test_the_head_with_the_lowest_loss_predicts(digits):
    objective, _ = small(digits, heads=3)
    for h, head in enumerate(objective.heads):
        head[-1].weight.data.mul_(0.0 if h != 1 else 3.0)  # constant heads, and one that answers
        head[-1].bias.data.fill_(0).index_fill_(0, torch.tensor([0]), 0.0 if h == 1 else 9.0)
    objective.eval().select()
    assert objective.best == 1
    x = digits.images.float() / 255
    assert torch.equal(objective.predict(x), objective.heads[1](objective.encoder(x)).argmax(1))


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


# -- self-labelling ----------------------------------------------------------------------------


def test_self_label_loss_by_hand():
    sure = torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.1, 0.0]])  # the last is not sure
    strong = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0], [5.0, 0.0]])
    ce = [math.log(1 + math.exp(-1)), math.log(2), math.log(1 + math.exp(-2))]
    plain, mask = self_label_loss(sure, strong, 0.9, balance=False)
    assert mask.tolist() == [True, True, True, False]
    assert plain.item() == pytest.approx(sum(ce) / 3)
    balanced, _ = self_label_loss(sure, strong, 0.9)
    assert balanced.item() == pytest.approx(((ce[0] + ce[1]) / 2 + ce[2]) / 2)


def test_balancing_is_the_released_weighting(logits):
    weak, strong = 9 * logits[0], logits[1]
    loss, mask = self_label_loss(weak, strong, 0.9)
    label = weak.argmax(1)[mask]
    count = label.bincount(minlength=4)
    weight = torch.where(count > 0, len(label) / count.clamp(min=1), 1.0)
    torch.testing.assert_close(loss, F.cross_entropy(strong[mask], label, weight))


def test_the_threshold_is_strict_and_weak_views_get_no_gradient():
    even = torch.zeros(3, 2, requires_grad=True)  # confidence exactly .5
    strong = torch.randn(3, 2, requires_grad=True)
    assert not self_label_loss(even, strong, 0.5)[1].any()
    self_label_loss(even, strong, 0.49)[0].backward()
    assert even.grad is None and strong.grad.abs().sum() > 0


def test_nobody_confident_is_zero_with_a_graph_and_counted(digits):
    strong = torch.randn(4, 3, requires_grad=True)
    loss, mask = self_label_loss(torch.zeros(4, 3), strong)
    loss.backward()
    assert loss == 0 and not mask.any() and strong.grad.abs().sum() == 0
    objective, config = small(digits)
    model = SelfLabel(objective.encoder, objective.heads[0], replace(config, threshold=1 - 1e-9))
    history = train(model, digits.images, TrainConfig(1, 40, "adam", 0.01))
    assert history[0]["empty"] == 1 and history[0]["loss"] == 0 and history[0]["confident"] == 0


def labeller(digits, how):
    objective, config = small(digits, ema=how, threshold=0.0, ema_decay=0.999)
    return SelfLabel(objective.encoder, objective.heads[0], config)


def test_the_released_average_divides_the_step_by_a_thousand(digits):
    moved = {}
    for how in ("off", "official"):
        model = labeller(digits, how)
        before = {k: v.clone() for k, v in model.live().state_dict().items()}
        step = TrainConfig(1, 160, "sgd", 0.1, momentum=0.0)
        train(model, digits.images, step)
        after = model.live().state_dict()
        moved[how] = {k: after[k].float() - before[k].float() for k in before}
    weights = [k for k, _ in model.live().named_parameters()]
    whole = torch.cat([moved["off"][k].flatten() for k in weights])
    kept = torch.cat([moved["official"][k].flatten() for k in weights])
    assert (kept.norm() / whole.norm()).item() == pytest.approx(0.001, rel=0.01)
    statistics = [k for k in before if "running_mean" in k]
    assert all(moved["official"][k].abs().max() == 0 for k in statistics)
    assert all(moved["off"][k].abs().max() > 0 for k in statistics)


def test_the_teacher_follows_and_labels(digits):
    model = labeller(digits, "teacher")
    start = model.shadow[1][-1].weight.clone()
    train(model, digits.images, TrainConfig(1, 160, "sgd", 0.1, momentum=0.0))
    expected = start.lerp(model.head[-1].weight, 0.001)
    torch.testing.assert_close(model.shadow[1][-1].weight, expected)
    assert not any(p.requires_grad for p in model.shadow.parameters())
    model.shadow[1][-1].bias.data[3] = 1e4  # the teacher now says 3 to everything
    loss = model(digits.images[:20].float() / 255, torch.arange(20))["loss"]
    strong = model.live()(digits.images[:20].float() / 255)
    torch.testing.assert_close(loss, -strong.log_softmax(1)[:, 3].mean())


def test_ema_by_hand():
    target, source = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    source.weight.data.fill_(3.0)
    source.running_mean.fill_(5.0)
    ema(target, source, 0.75, buffers=False)
    assert target.weight.tolist() == [1.5, 1.5] and target.running_mean.tolist() == [0, 0]
    ema(target, source, 0.75)
    assert target.running_mean.tolist() == [5, 5]


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
        ({"ema": "yes"}, "ema must be one of off, teacher, official; got 'yes'"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**change)


def test_too_many_neighbours_are_refused_before_training(digits):
    with pytest.raises(ValueError, match="n_neighbors must be 1 to 159; got 160"):
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
