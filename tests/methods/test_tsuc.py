"""TSUC by hand, by loops over the formulas, on shapes that do not fit, and what it promises."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.app.pretexts import stored
from dcl.cluster.contrast import spreading
from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods import simclr, superand
from dcl.methods.tsuc import TSUC, Config, fit, mutual_information
from dcl.recipes import superand as stage1
from dcl.recipes import tsuc as recipes
from dcl.train import extract, predict, seeded
from dcl.views import View

TINY = Config(n_clusters=3, heads=2, view=View(), train=TrainConfig(2, 4))
AXES = ("cluster", "feature", "off")


class Flat(nn.Module):
    """Mean brightness of quarters, four features."""

    out_dim = 4

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 0.5, 1.0]))

    def forward(self, x):
        return F.adaptive_avg_pool2d(x, 2).flatten(1) * self.scale


def images(n):
    with seeded(8):
        return torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8)


def quarters(n):
    """Images float (n,1,8,8) whose quarters differ in brightness."""
    with seeded(5):
        return torch.rand(n, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)


def make(config=TINY, n=9):
    with seeded(0):
        return TSUC(images(n), config, Flat())


# -- mutual information ------------------------------------------------------------------------


def slow_information(p, q):
    b, k = p.shape
    joint = [[0.0] * k for _ in range(k)]
    for n in range(b):
        for i in range(k):
            for j in range(k):
                joint[i][j] = joint[i][j] + (p[n, i] * q[n, j] + p[n, j] * q[n, i]) / (2 * b)
    total = 0.0
    for i in range(k):
        for j in range(k):
            alone = sum(joint[i]) * sum(joint[m][j] for m in range(k))
            if joint[i][j] > 0:
                total = total + joint[i][j] * torch.log(joint[i][j] / alone)
    return total


def drawn(*shape):
    with seeded(sum(shape)):
        return 2 * torch.randn(2, *shape, dtype=torch.float64)


@pytest.mark.parametrize("b, k", [(5, 3), (7, 2), (3, 8), (1, 4)])  # odd; K larger than B; one
def test_information_and_gradient_are_those_of_the_loop(b, k):
    logits = drawn(b, k).requires_grad_()
    fast, slow = (found(*logits.softmax(2)) for found in (mutual_information, slow_information))
    torch.testing.assert_close(fast, slow)
    (ours,), (wanted,) = (torch.autograd.grad(found, logits) for found in (fast, slow))
    torch.testing.assert_close(ours, wanted)
    assert -1e-12 < float(fast) < math.log(k)


def test_heads_do_not_mix():
    p, q = drawn(3, 5, 4).softmax(3)  # three heads
    each = torch.stack([slow_information(a, b) for a, b in zip(p, q, strict=True)])
    torch.testing.assert_close(mutual_information(p, q), each)


def test_an_empty_cluster_has_a_value_and_a_gradient():
    p, q = drawn(5, 3).softmax(2)
    p[:, 1] = q[:, 1] = 0.0
    p, q = (x / x.sum(1, keepdim=True) for x in (p, q))
    torch.testing.assert_close(mutual_information(p, q), slow_information(p, q))
    for far in (20.0, 200.0, 1e30):
        logits = (far * drawn(6, 4).float()).requires_grad_()
        found = mutual_information(*logits.softmax(2))
        (gradient,) = torch.autograd.grad(found, logits)
        assert found.isfinite() and gradient.isfinite().all()


def test_information_by_hand():
    certain = torch.eye(4).repeat(3, 1)
    assert mutual_information(certain, certain).item() == pytest.approx(math.log(4))
    assert abs(mutual_information(certain, certain.roll(1, 0)).item()) < math.log(4)
    even = torch.full((12, 4), 0.25)
    assert mutual_information(even, even).item() == pytest.approx(0, abs=1e-6)
    one = torch.eye(4)[:1].expand(12, 4)  # everything in one cluster
    assert mutual_information(one, one).item() == pytest.approx(0, abs=1e-6)
    # two views agree in three of four images: J = 3/8 on the diagonal, 1/8 beside it
    p, q = torch.eye(2)[[0, 0, 1, 1]], torch.eye(2)[[0, 1, 1, 1]]
    joint = torch.tensor([[1 / 4, 1 / 8], [1 / 8, 1 / 2]])
    alone = joint.sum(1)
    wanted = (joint * (joint / alone[:, None] / alone).log()).sum()
    torch.testing.assert_close(mutual_information(p, q), wanted)


def test_gradient_in_float64():
    p, q = drawn(4, 3).softmax(2)
    assert torch.autograd.gradcheck(mutual_information, (p.requires_grad_(), q.requires_grad_()))


# -- heads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", AXES)
def test_answers_are_those_of_the_loop(normalize):
    objective = make(replace(TINY, normalize=normalize, temperature=0.3))
    with seeded(2):
        z = F.normalize(torch.randn(5, 4), dim=1)
    found = objective.answers(z)
    assert found.shape == (2, 5, 3)
    for h, w in enumerate(objective.prototypes):
        w = w.clone()
        if normalize == "cluster":
            for k in range(3):
                w[:, k] /= sum(float(v) ** 2 for v in w[:, k]) ** 0.5
        if normalize == "feature":
            for d in range(4):
                w[d] /= sum(float(v) ** 2 for v in w[d]) ** 0.5
        for b in range(5):
            e = [math.exp(float(z[b] @ w[:, k]) / 0.3) for k in range(3)]
            torch.testing.assert_close(found[h, b], torch.tensor([v / sum(e) for v in e]))


def test_the_released_axis_makes_directions_longer():
    with seeded(0):
        w = torch.randn(1, 128, 10)
    assert F.normalize(w, dim=1).norm(dim=1).mean().item() == pytest.approx(1)
    assert F.normalize(w, dim=2).norm(dim=1).mean().item() == pytest.approx(3.57, abs=0.02)


@pytest.mark.parametrize("learned", [False, True])
def test_directions_are_trained_only_if_asked(learned):
    data = load("digits").subset(150)
    config = replace(recipes.smoke, learned=learned)
    with seeded(config.seed):
        pretext = simclr.model(data.images, config.pretext)
    start = {}

    def look(stage, epoch, objective, losses):
        start.setdefault(0, objective.prototypes.detach().clone())

    tsuc = fit(data.images, config, encoder=pretext, monitor=look)
    assert torch.equal(start[0], tsuc.prototypes) != learned
    assert ("prototypes" in dict(tsuc.named_parameters())) == learned
    assert "prototypes" in tsuc.state_dict()


# -- a step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.3])
def test_forward_is_the_algorithm(weight):
    view = View(negative=0.5)
    objective = make(replace(TINY, consistency_weight=weight, view=view, temperature=0.05))
    x, seen = quarters(5), []
    hook = objective.encoder.register_forward_hook(lambda m, given, out: seen.append(given[0]))
    with seeded(0):
        losses = objective(x, torch.arange(5))
    hook.remove()
    assert len(seen) == 1 and not torch.equal(seen[0][:5], seen[0][5:])
    for image, *views in zip(x, *seen[0].chunk(2), strict=True):
        assert all(torch.equal(one, image) or torch.equal(one, 1 - image) for one in views)
    z = objective.embed(seen[0])
    torch.testing.assert_close(z.norm(dim=1), torch.ones(10))
    each = [slow_information(p[:5], p[5:]) for p in objective.answers(z)]
    assert max(each) > 1e-3
    apart, mean = spreading(z[:5], z[5:], 0.05), sum(each) / 2
    torch.testing.assert_close(losses["information"], mean)
    torch.testing.assert_close(losses["consistency"], apart)
    torch.testing.assert_close(losses["loss"], weight * apart - mean)
    torch.testing.assert_close(objective.standing, -0.05 * torch.stack(each).detach())
    weights = list(objective.parameters())
    fast, slow = (torch.autograd.grad(v, weights) for v in (losses["loss"], weight * apart - mean))
    torch.testing.assert_close(fast, slow)
    before = objective.standing.clone()
    again = objective(x, torch.arange(5))["information"].detach()
    assert not torch.equal(objective.standing, before) and again.isfinite()
    torch.testing.assert_close(objective.standing.mean(), 0.95 * before.mean() - 0.05 * again)


def test_the_head_with_the_lowest_loss_answers():
    objective, x = make(replace(TINY, heads=4)).eval(), torch.rand(6, 1, 8, 8)
    objective.standing.copy_(torch.tensor([-0.3, -0.2, -0.9, -0.1]))
    wanted = objective.answers(objective.embed(x))[2]
    assert torch.equal(objective.predict_proba(x), wanted)
    torch.testing.assert_close(wanted.sum(1), torch.ones(6))


def test_losses_are_float32_under_autocast():
    objective, x = make(), torch.rand(5, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found, p = objective(x, torch.arange(5)), objective.predict_proba(x)
    assert {v.dtype for v in found.values()} == {torch.float32} and p.dtype == torch.float32


def test_embeddings_that_are_all_alike_cost_what_the_objective_says():
    objective = make()
    alike = F.normalize(torch.ones(4, 3), dim=1)
    chance = objective.chances()["consistency"]
    assert spreading(alike, alike).item() == pytest.approx(chance, abs=1e-5)
    assert make(replace(TINY, consistency_weight=0.0)).chances() == {}


# -- the whole ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load("digits").subset(160)


@pytest.mark.parametrize("pretext", ["simclr", "superand"])
def test_it_begins_with_the_embedding_of_its_pretext(digits, pretext):
    plan = {"simclr": recipes.smoke.pretext, "superand": stage1.smoke}[pretext]
    config = replace(recipes.smoke, pretext=plan, seed=3)
    module = {"simclr": simclr, "superand": superand}[pretext]
    first = module.fit(digits.images, replace(plan, seed=3))
    before = {k: v.clone() for k, v in first.state_dict().items()}
    still = replace(config, train=replace(config.train, epochs=0))
    z = extract(fit(digits.images, still, encoder=first).embed, digits.images)
    assert torch.equal(z, extract(first.embed, digits.images))
    a, b = fit(digits.images, config, encoder=first), fit(digits.images, config)
    assert all(torch.equal(v, before[k]) for k, v in first.state_dict().items())
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert a.prototypes.shape == (3, z.shape[1], 10)
    assert not torch.equal(extract(a.embed, digits.images), z)


def test_a_network_alone_is_clustered_in_its_features(digits):
    network = simclr.model(digits.images, recipes.smoke.pretext).encoder
    tsuc = fit(digits.images, recipes.smoke, encoder=network)
    z = F.normalize(extract(tsuc.encoder, digits.images), dim=1)
    torch.testing.assert_close(extract(tsuc.embed, digits.images), z)
    assert tsuc.prototypes.shape == (3, 32, 10)


def test_training_adds_information(digits):
    pretext, told = stored(load("digits").images, recipes.digits.pretext), []
    config = replace(recipes.smoke, train=replace(recipes.smoke.train, epochs=8))
    tsuc = fit(digits.images, config, encoder=pretext, monitor=lambda *a: told.append(a[3]))
    assert told[-1]["information"] > told[0]["information"] + 0.1
    with torch.no_grad():
        heads = tsuc.answers(extract(tsuc.embed, digits.images)).argmax(2)
    assert torch.equal(predict(tsuc, digits.images), heads[tsuc.standing.argmin()])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 0}, "heads must be at least 1; got 0"),
        ({"temperature": 0.0}, "temperature must be above 0; got 0.0"),
        ({"normalize": "rows"}, "normalize must be one of cluster, feature, off; got 'rows'"),
        ({"consistency_weight": -1.0}, "consistency_weight must be at least 0; got -1.0"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_the_released_settings():
    c = recipes.paper
    assert (c.heads, c.temperature, c.normalize, c.learned) == (5, 0.1, "cluster", False)
    assert c.consistency_weight == 1 and c.pretext == superand.Config()
    t = c.train
    assert (t.epochs, t.batch_size, t.lr, t.nesterov) == (300, 128, 0.01, True)
    assert (t.schedule, t.weight_decay) == ("constant", 5e-4)
    assert c.view == View(scale=(0.2, 1), flip=0.5, jitter=(0.4,) * 4, jitter_prob=1, gray=0.2)
